"""Shared memory: what DataLoader workers and NCCL pass data through.

Docker gives 64 MB, with which a DataLoader dies of a bus error (pytorch#5040, #1355 even deadlocks) and NCCL fails.
PyTorch's and NVIDIA's images ask for --ipc=host; 1 GiB, and 8 GiB for more than one GPU, are what field reports found
to be enough (facts of nvidia-docker and pytorch threads; no vendor gives a number).
"""

import re

from probe.context import Context
from probe.model import Finding, Job, Threshold, passed, warned
from probe.registry import check

GIB = 1 << 30
SOURCE = "pytorch#5040, #1355, #108861; Docker's default is 64 MB"


@check(
    "device.shm",
    severity="advisory",
    profiles="RN",
    uses=("files.shm",),
    thresholds={
        "min_bytes": Threshold(GIB, SOURCE),
        "min_many_gpus_bytes": Threshold(8 * GIB, SOURCE),
    },
)
async def shm(context: Context, job: Job) -> Finding:
    """Is /dev/shm large enough for DataLoader workers and NCCL?"""
    found = await context.answer("files", "statvfs:/dev/shm")
    if found.code:
        return warned(f"/dev/shm cannot be used: {found.text}", reason="missing", errno=found.code)
    gpus = sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in context.facts.nodes)
    least = job.thresholds["min_many_gpus_bytes" if gpus > 1 else "min_bytes"]
    size, free = found.data["size_bytes"], found.data["free_bytes"]
    data = {"size_bytes": size, "free_bytes": free, "least_bytes": least}
    if size < least:
        return warned(f"/dev/shm is {_gib(size)}, at least {_gib(least)} wanted", reason="small", **data)
    if free < least / 2:
        return warned(f"/dev/shm has {_gib(free)} free of {_gib(size)}", reason="full", **data)
    return passed(f"/dev/shm is {_gib(size)}, {_gib(free)} free", **data)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
