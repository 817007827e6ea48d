"""Whether a GPU has a job on it. A health check must never be what kills or slows that job.

No single sign is enough: in an ordinary container NVML's process list is empty or carries the host's pids, and open
descriptors tell nothing (a process limited to GPU 0 holds /dev/nvidia1 open too). So any one of them makes it busy.
"""

from msgspec import Struct

MIB = 1 << 20
IDLE_USED_BYTES = 512 * MIB
"""An idle context alone is 612 MiB on an H100, an idle GPU 0 (measured, NVML's used memory version 2)."""
ROOM_BYTES = 1536 * MIB
"""A context does not fit in 300 MiB and fits in 900 (measured on an H100); a job beside it wants air to breathe."""


NOTHING_SEEN = "nothing of it could be observed"


class Evidence(Struct, frozen=True):
    """What was observed of one GPU; None is what could not be observed."""

    processes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    utilization_percent: int | None = None
    exclusive: bool | None = None
    mps: bool = False


def busy(evidence: Evidence) -> str:
    """The signs of a job, as the words of the skip; empty when there are none. Nothing observable counts as busy."""
    signs = []
    if evidence.processes:
        signs.append(f"{evidence.processes} compute process{'es' if evidence.processes > 1 else ''}")
    if evidence.used_bytes is not None and evidence.used_bytes > IDLE_USED_BYTES:
        signs.append(f"{evidence.used_bytes / MIB:.0f} MiB used")
    if evidence.utilization_percent:
        signs.append(f"utilisation {evidence.utilization_percent} %")
    if evidence.exclusive and evidence.used_bytes:
        signs.append("exclusive compute mode, in use")
    if evidence.mps:
        signs.append("an MPS pipe exists")
    if evidence.free_bytes is not None and evidence.free_bytes < ROOM_BYTES:
        signs.append(f"only {evidence.free_bytes / MIB:.0f} MiB free")
    observed = (evidence.processes, evidence.used_bytes, evidence.utilization_percent)
    if not signs and all(sign is None for sign in observed):
        signs.append(NOTHING_SEEN)
    return ", ".join(signs)
