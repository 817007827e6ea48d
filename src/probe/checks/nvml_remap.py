"""Rows of memory that were replaced by spare ones (row remapping, from Ampere on).

failed    a row could not be replaced: NVIDIA's criterion for an RMA (GPU memory error management, "RMA Policy
          Thresholds for Row-Remapping"; DCGM isolates, gpud asks for an inspection)
pending   a warning: the row is replaced at the next reset; meanwhile "unaffected applications can continue running
          without affecting accuracy and performance, and new workloads can be launched" (same guide, "Error Recovery
          and Response Flags"). gcm and AzNHC fail on it, which drains nodes that work. Where a reset *is* needed first,
          `nvml.recovery` says so.

An RTX 4090 answers with success and zeros (gpud): without ECC no error is seen, hence no row remapped, so that zeros
say nothing and are skipped.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, skipped, unknown, warned
from probe.registry import check

ROWS = 1 << 20
"""More remapped rows than any GPU has spare: an H100 has 2,560 banks with at most a few each."""


@check(
    "nvml.remap",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.remap", "nvml.ecc"),
    per_gpu=True,
    gpu_only=True,
    thresholds={"max_uncorrected_rows": Threshold(511, "DCGM's health watch warns from 512 uncorrectable remaps on")},
)
async def remap(context: Context, job: Job) -> Finding:
    """Could every bad row of the GPU's memory be replaced, and are all of them?"""
    found = (await context.nvml("remap", job.target)).data
    corrected, uncorrected = found["corrected"], found["uncorrected"]
    data: dict[str, Scalar] = {
        "remapped_corrected_rows": corrected,
        "remapped_uncorrected_rows": uncorrected,
        "remap_pending": bool(found["pending"]),
        "remap_failed": bool(found["failed"]),
    }
    if max(found.values()) >= ROWS or min(found.values()) < 0 or max(found["pending"], found["failed"]) > 1:
        said = ", ".join(f"{key} {value}" for key, value in found.items())
        return unknown(f"NVML's row remapping makes no sense: {said}", **data)
    rows = f"{corrected + uncorrected} rows remapped"
    if found["failed"]:
        return failed(f"a bad row of memory could not be replaced ({rows}, 0 failures allowed)", **data)
    if found["pending"]:
        return warned(f"a bad row of memory waits to be replaced at the next GPU reset ({rows})", **data)
    most = job.thresholds["max_uncorrected_rows"]
    if uncorrected > most:
        return warned(f"{uncorrected} rows remapped for uncorrectable errors, at most {most:g} wanted", **data)
    if not any(found.values()) and not await _ecc_on(context, job.target):
        return skipped(f"ECC is not on, so {context.product(job.target)} finds no rows to remap", **data)
    return passed(f"{rows} ({uncorrected} for uncorrectable errors), none pending, none failed", **data)


async def _ecc_on(context: Context, target: str) -> bool:
    found = await context.answer("nvml", "ecc", target)
    return found.code == 0 and found.data["mode"] == 1
