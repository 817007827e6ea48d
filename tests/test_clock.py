"""Durations, the run's own age, and the order of a budget's instants."""

import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.clock import ASSUMED_AGE_S, DAY_S, SMALLEST_BUDGET_S, Budget, parse_duration, process_age_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("9s", 9),
        ("250ms", 0.25),
        ("2m", 120),
        ("1.5m", 90),
        ("1h", 3600),
        ("24h", DAY_S),
        ("1ms", 0.001),
        ("0.5s", 0.5),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    """Milliseconds, seconds, minutes, hours."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9",
        "s",
        "-1s",
        "+1s",
        "1e3s",
        " 9s",
        "9 s",
        "9S",
        "1.s",
        ".5s",
        "0s",
        "0.1ms",
        "25h",
        "nans",
        "infs",
        "٣s",
        "1_0s",
    ],
)
def test_all_else_is_none(text: str) -> None:
    """Signs, exponents, blanks, other digits, under 1 ms, over a day."""
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        parse_duration(text)


@given(st.text())
def test_no_text_makes_another_error(text: str) -> None:
    """A value in its range or ValueError."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0.001 <= seconds <= DAY_S


@given(st.floats(SMALLEST_BUDGET_S, DAY_S))
def test_the_instants_of_a_budget_are_in_order(budget_s: float) -> None:
    """Limit of a child < kill < reaped < written < net < budget < last resort, whatever the budget."""
    budget = Budget(0.0, budget_s)
    instants = [
        budget.child_limit_s,
        budget.kill_s,
        budget.reaped_s,
        budget.write_s,
        budget.net_s,
        budget.budget_s,
        budget.last_resort_s,
    ]
    assert sorted(set(instants)) == instants
    assert budget.kill_s <= budget_s - 0.8
    assert budget.kill_s <= budget_s * 0.92 + 1e-9


def test_what_is_left_is_never_negative() -> None:
    """A run that is late has no time, not less."""
    late = Budget(time.monotonic() - 100, 9)
    assert late.left_s(late.budget_s) == 0
    assert late.elapsed_s() >= 100


def age_in(script: str) -> float:
    code = "from probe.clock import process_age_s; print(process_age_s())"
    done = subprocess.run(
        ["sh", "-c", script, "sh", sys.executable, "-P", "-c", code], capture_output=True, check=True, text=True
    )
    return float(done.stdout)


def test_the_age_of_a_process_is_counted_from_its_start() -> None:
    """By the kernel's word: the import above is in it, and hardly more."""
    assert 0.01 <= age_in('exec "$@"') < 2


def test_an_age_that_is_a_shells_is_not_believed() -> None:
    """Exec keeps the time of the fork: over 2 s it is assumed to be 0.1 s."""
    assert age_in('sleep 2.1; exec "$@"') == ASSUMED_AGE_S


def test_an_age_that_cannot_be_told_is_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without procfs, or with a line in it that is none, or from the future."""
    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert process_age_s() == ASSUMED_AGE_S
    monkeypatch.undo()
    monkeypatch.setattr(time, "clock_gettime", lambda _: 0.0)
    assert process_age_s() == ASSUMED_AGE_S
