"""The CUDA driver starts: cuInit, under the user's own environment and without a context. Codes are CUresult's."""

from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.registry import check

LIBRARY_MISSING = -1


@check("cuda.init", profiles="RSN", uses=("cuda",), gpu_only=True)
async def init(context: Context, job: Job) -> Finding:
    """Does the CUDA driver start?"""
    found = await context.answer("cuda", "init")
    library = str(found.data.get("library", ""))
    if found.code == 0:
        version = int(found.data["driver_cuda"])
        summary = f"CUDA {version // 1000}.{version % 1000 // 10}, cuInit in {found.elapsed_s:.2f} s"
        return passed(summary, driver_cuda=version, library=library)
    if found.code == LIBRARY_MISSING:
        return failed(found.text, reason="library_missing")
    visible = context.facts.cuda_visible
    told = f" with CUDA_VISIBLE_DEVICES={visible}" if visible is not None and found.code == 100 else ""
    return failed(f"cuInit gives {found.code}, {found.text}{told}", cuda_code=found.code, library=library)
