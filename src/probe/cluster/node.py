"""What a host's own check (``probe check --profile node``) means to the gate. Pure.

healthy and degraded are ready, with warnings; unhealthy is bad, for the reason that its report gives first; a host on
whose GPUs somebody works is busy; no answer is no health.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from probe.cluster.model import HostState
from probe.measure.limits import link_gbps
from probe.model import Outcome, Report, Status

COMPUTE = ("torch.tensor", "cuda.kernel")
ENOUGH_S = 20.0
"""A cold import of torch took 20 s from a network disk; with less than that a timeout says little of the host."""
LITTLE_S = 5.0
"""On a busy host the interpreter alone takes a second or two: with less than this no report at all says little too."""
COMPUTED = ("torch.tensor", Status.PASS)
BUSY = ("busy (", "not known whether busy", "another probe is testing")


class NodeFinding(Struct, frozen=True):
    state: HostState
    summary: str = ""
    reason: str = "node"
    """The catalogue's word for what keeps it out."""
    code: str = ""
    """Of the fault that the host's own report names first; empty: the gate's own words."""
    remedy: str = ""
    who: str = ""
    warnings: tuple[tuple[str, str, str, str], ...] = ()
    """Code, summary, remedy and who of what is wrong and keeps nobody from working."""
    gpus: int = 0
    """On which torch computed exactly."""
    gpu_name: str = ""
    driver: str = ""
    nvlink_gbps: float = 0.0
    """What the active NVLinks of the GPU that has the fewest carry in one direction; 0: none, or not known."""
    seconds: float = 0.0


def judge(found: Mapping[str, Any] | None, text: str, *, budget_s: float = 60.0) -> NodeFinding:
    """The finding; `found` is the report as it came over the wire, None where there was none.

    `budget_s` is what the check was given: where that was little, whoever did not answer in time is not blamed.
    """
    if found is None:
        return _no_report(text.strip().rpartition("\n")[2], budget_s)
    try:
        report = msgspec.convert({"notes": (), **found}, Report, strict=False)
        return _read(report, budget_s)
    except (TypeError, ValueError) as error:  # a ValidationError, or a number in it that is none
        return _no_report(str(found.get("message", error)), budget_s)


def _no_report(words: str, budget_s: float) -> NodeFinding:
    summary = f"its own check gave no report{': ' + words if words else ''}"[:300]
    return NodeFinding(HostState.UNDETERMINED, *(_hurried(summary, budget_s) if budget_s < LITTLE_S else (summary,)))


def _hurried(summary: str, budget_s: float) -> tuple[str, str]:
    """Summary and reason, where the little time that it had is what is wrong."""
    return f"its own check had only {budget_s:.1f} s: {summary.removeprefix('its own check ')}", "node_hurried"


def _read(report: Report, budget_s: float) -> NodeFinding:
    checks = {outcome.id: outcome for outcome in report.checks if outcome.status in (Status.PASS, Status.WARN)}
    passed = {outcome.target for outcome in report.checks if (outcome.id, outcome.status) == COMPUTED}
    tested = {target for target in passed if target.startswith("gpu:")}
    counted, reached = checks.get("nvml.count"), checks.get("nvml.reach")
    links = [one for one in report.checks if one.id == "nvml.nvlink" and one.target in tested]
    known = {
        "gpus": len(tested),
        "gpu_name": str(counted.data.get("gpu_name", "")) if counted else "",
        "driver": str(reached.data.get("driver_version", "")) if reached else "",
        "nvlink_gbps": min(map(_nvlink_gbps, links), default=0.0) if len(links) == len(tested) else 0.0,
        "seconds": report.elapsed_s,
    }
    causes = tuple((cause.code, cause.summary, cause.remedy, cause.who.value) for cause in report.causes)
    if report.verdict in ("unhealthy", "undetermined"):
        code, summary, remedy, who = causes[0] if causes else ("", f"its own check says {report.verdict}", "", "")
        if budget_s < ENOUGH_S and _first_status(report) is Status.TIMEOUT:
            hurried = _hurried(summary, budget_s)
            return NodeFinding(HostState.UNDETERMINED, *hurried, warnings=causes[1:], **known)  # type: ignore[arg-type]
        state = HostState.BAD if report.verdict == "unhealthy" else HostState.UNDETERMINED
        said = {"code": code, "remedy": remedy, "who": who}
        return NodeFinding(state, summary, warnings=causes[1:], **said, **known)  # type: ignore[arg-type]
    if busy := [outcome for outcome in report.checks if _busy(outcome)]:
        return NodeFinding(HostState.BUSY, _where(busy), "busy", warnings=causes, **known)  # type: ignore[arg-type]
    return NodeFinding(HostState.READY, warnings=causes, **known)  # type: ignore[arg-type]


def _nvlink_gbps(outcome: Outcome) -> float:
    """Of one GPU."""
    data = outcome.data
    version, mbps = data.get("nvlink_version"), data.get("nvlink_mbps")
    up = int(data.get("nvlinks") or 0) - int(data.get("nvlinks_inactive") or 0)
    return up * (link_gbps(int(version) if version else None, int(mbps) if mbps else None) or 0.0)


def _first_status(report: Report) -> Status | None:
    """How the evidence of the first cause ended."""
    named = report.causes[0].checks[0] if report.causes and report.causes[0].checks else None
    of_it = (one.status for one in report.checks if named and (one.id, one.target) == (named.id, named.target))
    return next(of_it, None)


def _busy(outcome: Outcome) -> bool:
    return outcome.id in COMPUTE and outcome.status is Status.SKIP and outcome.summary.startswith(BUSY)


def _where(busy: list[Outcome]) -> str:
    targets = {outcome.target for outcome in busy}
    return f"{len(targets)} of its GPUs {'is' if len(targets) == 1 else 'are'} in use: {busy[0].summary}"
