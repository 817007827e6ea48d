"""Outcomes and reports as the engine would make them, for the tests of what is made of them."""

from collections.abc import Iterable

from probe.faults import diagnose
from probe.model import Cause, Outcome, Profile, Report, Scalar, Severity, Status
from probe.verdict import verdict

GPUS = tuple(f"gpu:GPU-{number:08x}-1234-5678-9abc-def012345678" for number in range(0xA0, 0xA8))
PER_GPU = [
    "nvml.recovery",
    "nvml.ecc",
    "nvml.remap",
    "nvml.sram",
    "nvml.fabric",
    "nvml.throttle",
    "nvml.temperature",
    "nvml.pcie",
    "nvml.pages",
    "nvml.persistence",
    "nvml.mode",
    "nvml.memory",
    "nvml.processes",
    "nvml.mig",
    "cuda.context",
    "cuda.kernel",
    "torch.arch",
    "torch.tensor",
]
OF_THE_NODE = [
    "device.nodes",
    "device.uvm",
    "device.module",
    "device.stuck",
    "device.shm",
    "device.limits",
    "device.cgroup",
    "device.disk",
    "device.zombies",
    "device.environment",
    "device.smi",
    "nvml.reach",
    "nvml.count",
    "cuda.init",
    "cuda.counts",
    "torch.import",
    "torch.build",
]


def outcome(
    check: str,
    status: str = "fail",
    summary: str = "it is bad",
    *,
    target: str = "",
    severity: str = "critical",
    **data: Scalar,
) -> Outcome:
    return Outcome(check, target, Status(status), Severity(severity), summary, 0.5, 0.25, data)


def report(
    *outcomes: Outcome,
    profile: Profile = Profile.READINESS,
    causes: Iterable[Cause] | None = None,
    notes: tuple[str, ...] = (),
) -> Report:
    found = diagnose(outcomes, profile) if causes is None else tuple(causes)
    return Report(
        schema="probe.report/1",
        probe_version="0.1.0",
        host="node-7",
        profile=profile,
        verdict=verdict(outcomes, profile, found),
        exit_code=0,
        budget_s=9.0,
        elapsed_s=4.1,
        started_at="2026-11-23T15:00:00Z",
        causes=found,
        checks=outcomes,
        notes=notes,
    )


def healthy(gpus: Iterable[str] = GPUS) -> list[Outcome]:
    """A whole run on a node where all is well."""
    name = {"gpu_name": "NVIDIA H100 80GB HBM3"}
    node = [outcome(check, "pass", "as it should be") for check in OF_THE_NODE]
    each = [
        outcome(check, "pass", f"{40 + number} C of 90 C", target=gpu, **(name if check == "nvml.memory" else {}))
        for check in PER_GPU
        for number, gpu in enumerate(gpus)
    ]
    return node + each
