"""GPU memory by NVML, version 2, in which the driver's own reserve is not counted as used.

Memory that no process holds is what a killed job's leftover workers look like (pytorch#4031; the GPU cannot be used
until they are gone). It is judged only outside containers: inside one, NVML's process list is empty or carries the
host's pids, and says nothing. 1 GiB is soperator's margin for contexts of the driver's own services.
"""

from probe.context import Context
from probe.model import Finding, Job, Threshold, passed, unknown, warned
from probe.registry import check

GIB = 1 << 30


@check(
    "nvml.memory",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.memory", "nvml.processes"),
    per_gpu=True,
    gpu_only=True,
    thresholds={"max_ownerless_bytes": Threshold(GIB, "soperator alloc_gpus_busy; pytorch#4031")},
)
async def memory(context: Context, job: Job) -> Finding:
    """Is the GPU's memory all there, and what is used of it held by somebody?"""
    found = (await context.nvml("memory", job.target)).data
    total, used, free = found["total_bytes"], found["used_bytes"], found["free_bytes"]
    data = {"total_bytes": total, "used_bytes": used, "free_bytes": free, "reserved_bytes": found["reserved_bytes"]}
    if not 0 < total < 1 << 50 or used > total or free > total:
        return unknown(f"NVML's memory figures make no sense: {used} used, {free} free of {total} bytes", **data)
    if not context.facts.in_container:
        held = (await context.nvml("processes", job.target)).data
        ownerless = used - held["used_bytes"]
        if held["count"] == 0 and ownerless > job.thresholds["max_ownerless_bytes"]:
            summary = f"{ownerless / GIB:.1f} GiB used, and no process holds them"
            return warned(summary, reason="ownerless", ownerless_bytes=ownerless, **data)
    return passed(f"{used / GIB:.1f} of {total / GIB:.1f} GiB used", **data)
