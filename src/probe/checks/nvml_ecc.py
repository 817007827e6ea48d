"""Memory errors that ECC could not correct, since the driver was loaded or the GPU was reset (NVML's volatile count).

Any is a failure, as for DCGM, gcm and healthagent. The aggregate count is for life and survives a repair, so it is
reported and never judged: to fail on it, as AzNHC does, condemns a mended GPU. Corrected errors are ECC at work.

With ECC off nothing is counted: skipped, and no warning, since off is what GeForce and RTX boards are delivered with
and no tool that we know of judges it.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, skipped, unknown
from probe.registry import check

MOST = 1 << 40
"""A count beyond this is no count: one error a millisecond for 34 years."""


@check(
    "nvml.ecc",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.ecc",),
    per_gpu=True,
    gpu_only=True,
    thresholds={"max_uncorrected_errors": Threshold(0, "DCGM, gcm and healthagent: any fails")},
)
async def ecc(context: Context, job: Job) -> Finding:
    """Has the GPU's memory had errors that could not be corrected?"""
    found = (await context.nvml("ecc", job.target)).data
    mode, pending = found["mode"], found["pending"]
    modes: dict[str, Scalar] = {"ecc_on": mode == 1, "ecc_on_after_reset": pending == 1}
    if mode not in (0, 1):
        return unknown(f"NVML's ECC mode makes no sense: {mode}, neither 0 nor 1", ecc_mode=mode)
    if mode == 0:
        return skipped("ECC is off (mode 0): errors are neither corrected nor counted", **modes)
    counts: dict[str, Scalar] = {f"{key}_errors": found[key] for key in found if key not in ("mode", "pending")}
    data = {**modes, **counts}
    if wrong := [key for key, count in counts.items() if not 0 <= int(count or 0) < MOST]:
        return unknown(f"NVML's count makes no sense: {counts[wrong[0]]} {wrong[0].replace('_', ' ')}", **data)
    uncorrected, most = found["volatile_uncorrected"], job.thresholds["max_uncorrected_errors"]
    summary = f"{uncorrected} uncorrected memory errors since the last reset, at most {most:g} allowed"
    return failed(summary, **data) if uncorrected > most else passed(summary, **data)
