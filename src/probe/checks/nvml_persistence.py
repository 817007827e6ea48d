"""Persistence mode: the driver stays initialised while nobody uses the GPU.

Without it "on the order of 1-3 seconds" per GPU pass at each first use (NVIDIA's driver persistence guide), out of a
health check's budget too, and volatile error counts are forgotten. gpud and healthagent call it unhealthy; here it is a
warning, since the work gets done.
"""

from probe.context import Context
from probe.model import Finding, Job, passed, unknown, warned
from probe.registry import check


@check(
    "nvml.persistence",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.persistence",),
    per_gpu=True,
    gpu_only=True,
)
async def persistence(context: Context, job: Job) -> Finding:
    """Does the driver keep the GPU initialised?"""
    mode = (await context.nvml("persistence", job.target)).data["mode"]
    if mode not in (0, 1):
        return unknown(f"NVML's persistence mode makes no sense: {mode}, neither 0 nor 1", persistence_mode=mode)
    if mode == 0:
        return warned("persistence mode is off: each first use of the GPU costs 1 to 3 s", persistence_mode=mode)
    return passed("persistence mode is on", persistence_mode=mode)
