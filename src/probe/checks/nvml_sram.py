"""Whether the GPU's own count of SRAM errors has passed the limit from which on NVIDIA takes it back.

NVML says only that: the limit is the device's (nvmlEccSramErrorStatus_v1_t, bThresholdExceeded; DCGM's level 1 tests
the same flag). The counts are reported, the aggregate one is for life.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, failed, passed, unknown
from probe.registry import check

MOST = 1 << 40


@check("nvml.sram", profiles="RN", needs=("nvml.reach",), uses=("nvml.sram",), per_gpu=True, gpu_only=True)
async def sram(context: Context, job: Job) -> Finding:
    """Have the GPU's caches and registers had fewer errors than its maker tolerates?"""
    found = (await context.nvml("sram", job.target)).data
    exceeded, ever = found["exceeded"], found["aggregate_uncorrected"]
    data: dict[str, Scalar] = {
        "sram_threshold_exceeded": exceeded == 1,
        "sram_volatile_uncorrected_errors": found["volatile_uncorrected"],
        "sram_aggregate_uncorrected_errors": ever,
    }
    if exceeded not in (0, 1) or not all(0 <= count < MOST for count in (ever, found["volatile_uncorrected"])):
        return unknown(f"NVML's SRAM status makes no sense: exceeded {exceeded}, {ever} errors in its life", **data)
    if exceeded:
        return failed(f"SRAM errors are beyond the device's own threshold ({ever} uncorrected in its life)", **data)
    return passed(f"SRAM errors are below the device's own threshold ({ever} uncorrected in its life)", **data)
