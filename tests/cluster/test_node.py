"""What a host's own report means to the gate."""

from typing import Any

import msgspec
import pytest

from probe.cluster.model import HostState
from probe.cluster.node import judge
from probe.model import Cause, Outcome, Profile, Reference, Report, Severity, Status, Verdict, Who


def outcome(check: str, status: Status, summary: str = "x", target: str = "", **data: Any) -> Outcome:
    return Outcome(check, target, status, Severity.CRITICAL, summary, 0.0, 0.1, data)


def report(verdict: Verdict, *outcomes: Outcome, causes: tuple[Cause, ...] = ()) -> dict[str, Any]:
    made = Report(
        "probe.report/1", "0.1.0", "h", Profile.NODE, verdict, 0, 60.0, 3.0, "2026-01-01T00:00:00Z", causes, outcomes
    )
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made))
    return found


ECC = Cause("ECC_UNCORRECTED", "2 errors", "Reset the GPU.", Who.HOST_ADMIN, (Reference("nvml.ecc", "gpu:A"),))


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (Verdict.HEALTHY, HostState.READY),
        (Verdict.DEGRADED, HostState.READY),
        (Verdict.UNHEALTHY, HostState.BAD),
        (Verdict.UNDETERMINED, HostState.UNDETERMINED),
    ],
)
def test_each_verdict_has_its_state(verdict: Verdict, state: HostState) -> None:
    assert state is judge(report(verdict, outcome("torch.tensor", Status.PASS)), "").state


def test_a_bad_host_is_bad_for_its_reports_first_cause() -> None:
    found = judge(report(Verdict.UNHEALTHY, causes=(ECC,)), "")
    assert ("ECC_UNCORRECTED", "2 errors", "Reset the GPU.", "host_admin") == (
        found.code,
        found.summary,
        found.remedy,
        found.who,
    )


@pytest.mark.parametrize(("budget_s", "state"), [(60.0, HostState.BAD), (5.0, HostState.UNDETERMINED)])
def test_who_had_little_time_is_not_blamed_for_being_late(budget_s: float, state: HostState) -> None:
    late = Cause("TORCH_IMPORT_HANGS", "late", "Wait.", Who.USER, (Reference("torch.import", ""),))
    found = judge(
        report(Verdict.UNHEALTHY, outcome("torch.import", Status.TIMEOUT), causes=(late,)), "", budget_s=budget_s
    )
    assert state is found.state
    told = {60.0: ("late", "TORCH_IMPORT_HANGS"), 5.0: ("its own check had only 5.0 s: late", "")}
    assert told[budget_s] == (found.summary, found.code)


@pytest.mark.parametrize(
    ("budget_s", "reason", "words"),
    [(60.0, "node", "its own check gave no report: x"), (1.0, "node_hurried", "its own check had only 1.0 s: gave no")],
)
@pytest.mark.parametrize("found", [None, {"message": "x"}], ids=["no JSON", "no report"])
def test_who_had_no_time_for_a_report_is_hurried(
    found: dict[str, Any] | None, budget_s: float, reason: str, words: str
) -> None:
    """What is wrong is the budget, which is the user's to mend, and nothing on the host."""
    finding = judge(found, "Traceback\nx", budget_s=budget_s)
    assert (HostState.UNDETERMINED, reason) == (finding.state, finding.reason)
    assert finding.summary.startswith(words)


@pytest.mark.parametrize(
    ("second", "gbps"),
    [
        ({"nvlinks": 18, "nvlinks_inactive": 2}, 400.0),
        ({"nvlinks": 0, "nvlinks_inactive": 0, "nvlink_mbps": None, "nvlink_version": None}, 0.0),
        (None, 0.0),
    ],
    ids=["two links down", "no NVLink", "not asked"],
)
def test_nvlink_carries_what_the_gpu_with_the_least_has(second: dict[str, Any] | None, gbps: float) -> None:
    """18 links of 25 GB/s are the other's (NVML reports 26.562, of which 25 are data)."""
    links: dict[str, Any] = {"nvlinks": 18, "nvlinks_inactive": 0, "nvlink_mbps": 26562, "nvlink_version": 5}
    outcomes = [outcome("torch.tensor", Status.PASS, target=f"gpu:{name}") for name in "AB"]
    outcomes.append(outcome("nvml.nvlink", Status.PASS, target="gpu:A", **links))
    if second is not None:
        outcomes.append(outcome("nvml.nvlink", Status.PASS, target="gpu:B", **{**links, **second}))
    assert gbps == judge(report(Verdict.HEALTHY, *outcomes), "").nvlink_gbps


def test_a_report_with_a_number_that_is_none_is_no_report() -> None:
    odd = outcome("nvml.nvlink", Status.PASS, target="gpu:A", nvlinks="many")
    found = judge(report(Verdict.HEALTHY, outcome("torch.tensor", Status.PASS, target="gpu:A"), odd), "")
    assert HostState.UNDETERMINED is found.state
    assert found.summary.startswith("its own check gave no report: ")


def test_a_degraded_host_keeps_its_warnings() -> None:
    found = judge(report(Verdict.DEGRADED, causes=(ECC,)), "")
    assert (HostState.READY, "ECC_UNCORRECTED") == (found.state, found.warnings[0][0])


@pytest.mark.parametrize("why", ["busy (1 process)", "not known whether busy (x)", "another probe is testing"])
def test_a_host_at_work_is_busy(why: str) -> None:
    found = judge(report(Verdict.HEALTHY, outcome("cuda.kernel", Status.SKIP, why, "gpu:A")), "")
    assert (HostState.BUSY, True) == (found.state, why in found.summary)


def test_its_gpus_and_driver_are_known() -> None:
    counted = outcome("nvml.count", Status.PASS, uuids="GPU-1, GPU-2, GPU-3", gpu_name="H100")
    reached = outcome("nvml.reach", Status.PASS, driver_version="580.1")
    computed = [outcome("torch.tensor", Status.PASS, target=target) for target in ("gpu:GPU-1", "gpu:GPU-2", "cpu:0")]
    hidden = outcome("torch.tensor", Status.SKIP, "hidden by CUDA_VISIBLE_DEVICES", "gpu:GPU-3")
    found = judge(report(Verdict.HEALTHY, counted, reached, *computed, hidden), "")
    assert (2, "H100", "580.1") == (found.gpus, found.gpu_name, found.driver)


@pytest.mark.parametrize(
    ("said", "text"),
    [(None, ""), (None, "Traceback\nOSError: x"), ({}, ""), ({"schema": "probe.error/1", "message": "no"}, "")],
)
def test_no_report_is_no_health(said: Any, text: str) -> None:
    found = judge(said, text)
    assert found.state is HostState.UNDETERMINED
    assert "no report" in found.summary
