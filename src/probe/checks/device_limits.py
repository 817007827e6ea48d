"""Resource limits that a training process runs into.

Open files: DataLoader's file_descriptor sharing opens one per tensor and dies with "Too many open files" (PyTorch's
multiprocessing notes); below 1,024, the default of systemd and shells, nothing starts reliably. Locked memory matters
with RDMA alone: AWS's checks warn below 16 GiB, NVIDIA's containers ask for --ulimit memlock=-1.
"""

import resource

from probe.context import Context
from probe.model import Finding, Job, Threshold, passed, warned
from probe.registry import check


@check(
    "device.limits",
    severity="advisory",
    profiles="RN",
    thresholds={
        "min_open_files": Threshold(1024, "PyTorch multiprocessing notes; the default of systemd and shells"),
        "min_locked_rdma_bytes": Threshold(16 << 30, "awsome-distributed-training, GPU cluster health check"),
    },
)
async def limits(context: Context, job: Job) -> Finding:
    """Do open files and locked memory allow training?"""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    rdma = bool(context.host.names("/sys/class/infiniband"))
    data = {"open_files": _number(files), "locked_bytes": _number(locked), "rdma": rdma}
    least_files, least_locked = job.thresholds["min_open_files"], job.thresholds["min_locked_rdma_bytes"]
    if files != resource.RLIM_INFINITY and files < least_files:
        return warned(
            f"{files} open files allowed, at least {least_files} wanted", reason="small", limit="nofile", **data
        )
    if rdma and locked != resource.RLIM_INFINITY and locked < least_locked:
        summary = f"{locked} bytes of locked memory allowed, RDMA wants at least {least_locked}"
        return warned(summary, reason="small", limit="memlock", **data)
    return passed(f"{_words(files)} open files, {_words(locked)} bytes locked memory", **data)


def _number(limit: int) -> int:
    """-1 stands for unlimited, as in the limit's own interface."""
    return -1 if limit == resource.RLIM_INFINITY else limit


def _words(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)
