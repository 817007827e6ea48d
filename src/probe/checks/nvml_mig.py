"""Whether the GPU is cut into MIG instances: reported, not judged.

A mode that waits for a reset warns: until then programs see the GPU as it was, afterwards as something else.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, passed, unknown, warned
from probe.registry import check

WORDS = ("off", "on")


@check(
    "nvml.mig",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.mig",),
    per_gpu=True,
    gpu_only=True,
)
async def mig(context: Context, job: Job) -> Finding:
    """Is the GPU's MIG mode what it will be after a reset?"""
    found = (await context.nvml("mig", job.target)).data
    current, pending = found["current"], found["pending"]
    data: dict[str, Scalar] = {"mig_mode": current, "mig_pending_mode": pending}
    if not {current, pending} <= {0, 1}:
        return unknown(f"NVML's MIG mode makes no sense: {current}, pending {pending}", **data)
    if current != pending:
        return warned(f"MIG is {WORDS[current]}, and {WORDS[pending]} after the next GPU reset", **data)
    return passed(f"MIG is {WORDS[current]}", **data)
