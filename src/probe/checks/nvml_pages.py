"""Pages of memory that were taken out of use, on GPUs before Ampere (page retirement; later ones remap rows).

Pending is a warning: the page is taken out when the driver is next loaded. DCGM fails from 64 retired pages on, which
is all that the GPU's list holds; gcm's limit is 10.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, unknown, warned
from probe.registry import check

MOST = 1 << 20


@check(
    "nvml.pages",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.pages",),
    per_gpu=True,
    gpu_only=True,
    thresholds={"max_retired_pages": Threshold(63, "DCGM's health watch: more than 63")},
)
async def pages(context: Context, job: Job) -> Finding:
    """Is there room to take bad pages of the GPU's memory out of use, and has that happened?"""
    found = (await context.nvml("pages", job.target)).data
    single, double, pending = found["single_bit"], found["double_bit"], found["pending"]
    retired = single + double
    data: dict[str, Scalar] = {
        "retired_single_bit_pages": single,
        "retired_double_bit_pages": double,
        "retirement_pending": pending == 1,
    }
    if pending not in (0, 1) or not all(0 <= count < MOST for count in (single, double)):
        return unknown(f"NVML's retired pages make no sense: {single} and {double}, pending {pending}", **data)
    most = job.thresholds["max_retired_pages"]
    if retired > most:
        return failed(f"{retired} pages of memory are retired, at most {most:g} allowed", reason="many", **data)
    if pending:
        summary = f"a bad page of memory waits to be retired when the driver is next loaded ({retired} retired)"
        return warned(summary, reason="pending", **data)
    return passed(f"{retired} pages of memory are retired, at most {most:g} allowed", **data)
