"""The exit code of a run, by all that there is to say of it."""

import pytest
from msgspec.structs import replace

from probe.measure import baseline, delivery, page, text
from probe.measure.model import Bench, Done
from probe.measure.summary import FEWEST_PASSES
from tests.measure import samples


def compared(*, slower: float = 1.0, fails: bool = False, passes: int = 8) -> Bench:
    """Against the same machine, slower in one case, with a program that could not run; of few passes only products."""
    now, before = (
        samples.run(1, seed=2, passes=passes, slower={"matmul bf16 8192": slower}),
        samples.run(1, passes=passes),
    )
    if passes < FEWEST_PASSES:
        now, before = products(now), products(before)
    programs = tuple(
        replace(one, status=Done.FAIL, reason="words differ") if fails and one.program == "memory" else one
        for one in now.programs
    )
    return replace(now, programs=programs, comparison=baseline.compare(before, now, "base.json", 0.05))


def products(run: Bench) -> Bench:
    return replace(run, results=tuple(one for one in run.results if one.program == "matmul"))


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (compared(), 0),
        (compared(slower=1.5), 1),
        (compared(fails=True), 3),
        (compared(slower=1.5, fails=True), 3),
        (compared(passes=2), 3),
        (replace(compared(), comparison=None), 3),
    ],
    ids=["healthy", "slower", "fails", "slower and fails", "too few passes", "not compared"],
)
def test_the_worst_of_all_there_is_to_say_is_the_exit_code(report: Bench, code: int) -> None:
    assert delivery.exit_code(report, "", compared=True) == code


def test_where_nothing_was_judged_nobody_says_that_nothing_is_worse() -> None:
    report = compared(passes=2)
    assert "nothing could be compared" in text.render(report)
    shown = page.render(report)
    assert "nothing could be compared" in shown
    assert "no regression" not in shown


def test_what_is_allowed_is_said_as_it_is() -> None:
    assert "5 % allowed (more where a case differs anyway)" in text.render(compared())
