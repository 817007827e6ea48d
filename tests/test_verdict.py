"""Outcomes -> verdict, first match wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.faults import catalogue, diagnose
from probe.model import Cause, Profile, Reference, Severity, Status, Verdict, Who
from probe.verdict import verdict, weigh
from tests.report.samples import outcome

CRITICAL = [
    ("pass", "healthy"),
    ("skip", "undetermined"),
    ("warn", "degraded"),
    ("fail", "unhealthy"),
    ("timeout", "unhealthy"),
    ("unknown", "undetermined"),
]
ADVISORY = [("pass", "healthy"), ("skip", "undetermined"), ("warn", "degraded")]
ALONE = [(status, "critical", expected) for status, expected in CRITICAL]
ALONE += [(status, "advisory", expected) for status, expected in ADVISORY]
ALONE += [(status, "advisory", "undetermined") for status in ("fail", "timeout", "unknown")]  # nothing ended well


@pytest.mark.parametrize(("status", "severity", "expected"), ALONE)
def test_one_outcome_alone(status: str, severity: str, expected: str) -> None:
    assert expected == verdict([outcome("nvml.ecc", status, severity=severity)], Profile.READINESS, ())


@pytest.mark.parametrize(
    ("status", "severity", "expected"),
    [
        ("fail", "critical", "unhealthy"),
        ("timeout", "critical", "unhealthy"),
        ("unknown", "critical", "undetermined"),
        ("skip", "critical", "healthy"),
        ("warn", "critical", "degraded"),
        ("fail", "advisory", "degraded"),
        ("timeout", "advisory", "degraded"),
        ("unknown", "advisory", "degraded"),
        ("warn", "advisory", "degraded"),
        ("skip", "advisory", "healthy"),
    ],
)
def test_one_outcome_beside_one_that_passed(status: str, severity: str, expected: str) -> None:
    outcomes = [outcome("device.nodes", "pass"), outcome("nvml.ecc", status, severity=severity)]
    assert expected == verdict(outcomes, Profile.READINESS, ())


def test_no_outcome_at_all_is_undetermined() -> None:
    assert Verdict.UNDETERMINED is verdict([], Profile.READINESS, ())


def test_a_critical_failure_outweighs_a_critical_unknown() -> None:
    outcomes = [outcome("nvml.reach", "unknown"), outcome("cuda.init", "fail"), outcome("device.nodes", "pass")]
    assert Verdict.UNHEALTHY is verdict(outcomes, Profile.READINESS, ())


statuses = st.sampled_from([status.value for status in Status])
severities = st.sampled_from([severity.value for severity in Severity])


@given(st.lists(st.tuples(statuses, severities)))
def test_healthy_means_that_something_passed_and_nothing_was_wrong(pairs: list[tuple[str, str]]) -> None:
    outcomes = [outcome(f"nvml.x{i}", status, severity=severity) for i, (status, severity) in enumerate(pairs)]
    if verdict(outcomes, Profile.READINESS, ()) is Verdict.HEALTHY:
        assert {status for status, _ in pairs} <= {"pass", "skip"}
        assert "pass" in {status for status, _ in pairs}


BAD = ["fail", "timeout", "unknown"]


@pytest.mark.parametrize("status", BAD)
def test_in_liveness_a_fault_that_no_restart_mends_degrades_only(status: str) -> None:
    outcomes = [outcome("device.module", "pass"), outcome("nvml.reach", status, "NVML 18: mismatch", nvml_code=18)]
    assert Verdict.DEGRADED is verdict(outcomes, Profile.LIVENESS, diagnose(outcomes, Profile.LIVENESS))


def test_in_liveness_a_lost_device_permission_is_unhealthy() -> None:
    outcomes = [outcome("device.module", "pass"), outcome("device.nodes", "fail", "EPERM", reason="eperm")]
    assert Verdict.UNHEALTHY is verdict(outcomes, Profile.LIVENESS, diagnose(outcomes, Profile.LIVENESS))


def test_in_liveness_a_lost_permission_counts_also_beside_a_heavier_fault() -> None:
    outcomes = [
        outcome("device.nodes", "fail", "EPERM", reason="eperm"),
        outcome("device.stuck", "fail", "pid 7 in D", severity="advisory", reason="stuck"),
        outcome("nvml.reach", "fail", "NVML 18: mismatch", nvml_code=18),
    ]
    causes = diagnose(outcomes, Profile.LIVENESS)
    assert ("DEVICE_NODE_EPERM", Verdict.UNHEALTHY) == (causes[0].code, verdict(outcomes, Profile.LIVENESS, causes))


@pytest.mark.parametrize("status", BAD)
def test_in_liveness_nothing_but_problems_that_no_restart_mends_is_undetermined(status: str) -> None:
    outcomes = [outcome("nvml.reach", status)]
    assert Verdict.UNDETERMINED is verdict(outcomes, Profile.LIVENESS, diagnose(outcomes, Profile.LIVENESS))


def test_weigh_says_at_which_severity_each_outcome_counted() -> None:
    lost, hung = outcome("device.nodes", "fail"), outcome("nvml.reach", "timeout")
    cause = Cause("X", "", "", Who.CONTAINER_RESTART, (Reference("device.nodes", ""),))
    expected = [Severity.CRITICAL, Severity.ADVISORY]
    assert expected == [weighed.severity for weighed in weigh([lost, hung], Profile.LIVENESS, [cause])]
    assert (lost, hung) == weigh([lost, hung], Profile.READINESS, [cause])


def test_a_fault_that_asks_for_a_restart_is_recognised_by_what_was_seen_only() -> None:
    """A timeout or an unknown must never be the evidence on which a container is killed."""
    restarting = [fault for fault in catalogue() if fault.who is Who.CONTAINER_RESTART]
    assert {("fail",)} == {when.status for fault in restarting for when in fault.when}
