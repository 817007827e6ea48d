"""What a report of `probe check` says of what the checks cost, and of the machine."""

from typing import Any

import pytest

from probe.measure import costs


def check(name: str, status: str = "pass", elapsed_s: float = 0.1, summary: str = "right") -> dict[str, Any]:
    return {"id": name, "status": status, "elapsed_s": elapsed_s, "summary": summary}


def report(*checks: dict[str, Any], verdict: str = "healthy", elapsed_s: float = 2.0) -> dict[str, Any]:
    return {"verdict": verdict, "elapsed_s": elapsed_s, "checks": list(checks)}


def test_the_slowest_target_stands_for_a_check_and_what_did_not_run_cost_nothing() -> None:
    found = costs.read(report(check("a", elapsed_s=0.1), check("a", elapsed_s=0.4), check("b", "skip")), 9.0)
    assert costs.Costs({"whole run": 2.0, "a": 0.4}, [], "") == found


@pytest.mark.parametrize("status", ["timeout", "unknown"])
def test_a_run_that_our_own_clock_cut_off_says_nothing_of_the_machine(status: str) -> None:
    cut = report(check("a"), check("torch.tensor", status), verdict="unhealthy", elapsed_s=4.2)
    assert costs.Costs({}, ["whole run: no time"], "") == costs.read(cut, 5.0)


def test_a_check_without_an_answer_has_no_cost_and_its_reason_is_quoted() -> None:
    found = costs.read(report(check("a"), check("b", "timeout", 3.0, "no answer"), verdict="undetermined"), 60.0)
    assert (
        costs.Costs({"whole run": 2.0, "a": 0.1}, ["b: no answer"], "probe check says undetermined: b: no answer")
        == found
    )


def test_what_a_check_complains_of_is_quoted_failures_first() -> None:
    found = costs.read(report(check("a", "warn"), check("b", "fail", summary="gone"), verdict="unhealthy"), 9.0)
    assert found.complaint == "probe check says unhealthy: b: gone"
