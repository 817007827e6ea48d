"""The compute mode: how many processes may hold a context on the GPU.

Exclusive is somebody's choice and reported: that the GPU is in use then is no fault (pytorch#2704). Prohibited lets
nobody compute, also none of the jobs to come: a warning, since what follows from it fails by itself.
"""

from probe.context import Context
from probe.model import Finding, Job, passed, unknown, warned
from probe.registry import check

MODES = {0: "default: any number of processes", 1: "exclusive to one thread", 3: "exclusive to one process"}
PROHIBITED = 2


@check(
    "nvml.mode",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.compute_mode",),
    per_gpu=True,
    gpu_only=True,
)
async def mode(context: Context, job: Job) -> Finding:
    """May processes compute on the GPU?"""
    found = int((await context.nvml("compute_mode", job.target)).data["mode"])
    if found == PROHIBITED:
        return warned("the compute mode is prohibited (2): no process may compute here", compute_mode=found)
    if found not in MODES:
        return unknown(f"NVML's compute mode makes no sense: {found}, known are 0 to 3", compute_mode=found)
    return passed(f"the compute mode is {MODES[found]} ({found})", compute_mode=found)
