"""Why the GPU's clocks are below what they could be, at this moment (nvmlClocksEventReasons).

Idle, a power cap, application clocks, sync boost and display clocks are how a GPU is meant to run. The mask 0xE8 is
what is not: hardware slowdown 0x8, software thermal slowdown 0x20, hardware thermal slowdown 0x40, power brake 0x80
(healthagent's mask; AzNHC warns of the same). NVML notes that 0x8 may show for a moment while clocks change.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, unknown
from probe.registry import check

REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
KNOWN = 1 << 32
"""NVML has nine reasons; a mask beyond 32 bits is no mask."""
THERMAL, BRAKE, HARDWARE = 0x60, 0x80, 0x8


@check(
    "nvml.throttle",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.throttle",),
    per_gpu=True,
    gpu_only=True,
    thresholds={"bad_reasons_mask": Threshold(0xE8, "healthagent defaults.yaml; NVML's nvmlClocksEventReasons")},
)
async def throttle(context: Context, job: Job) -> Finding:
    """Is the GPU slowed down by heat, or by its power supply?"""
    reasons = int((await context.nvml("throttle", job.target)).data["reasons"])
    if not 0 <= reasons < KNOWN:
        return unknown(f"NVML's clocks event reasons make no sense: {reasons:#x}", throttle_reasons=str(reasons))
    bad = reasons & int(job.thresholds["bad_reasons_mask"])
    data: dict[str, Scalar] = {"throttle_reasons": reasons, "throttle_names": _names(reasons)}
    if not bad:
        return passed(f"clocks are held by {_names(reasons) or 'nothing'} (reasons {reasons:#x})", **data)
    reason = "thermal" if bad & THERMAL else "power_brake" if bad & BRAKE else "hardware" if bad & HARDWARE else "other"
    allowed = f"reasons {reasons:#x}, none of {int(job.thresholds['bad_reasons_mask']):#x} allowed"
    return failed(f"the GPU is slowed down: {_names(bad)} ({allowed})", reason=reason, **data)


def _names(reasons: int) -> str:
    bits = [1 << bit for bit in range(reasons.bit_length()) if reasons >> bit & 1]
    return ", ".join(REASONS.get(bit, f"reason {bit:#x}") for bit in bits)
