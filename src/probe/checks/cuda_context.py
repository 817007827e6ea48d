"""A context on the GPU: what every CUDA program makes first.

Out of memory is no fault of the GPU: skipped, and said.
"""

from probe.context import Context
from probe.model import Finding, Job, Rung, Status, failed, skipped
from probe.registry import check

OUT_OF_MEMORY = 2


@check("cuda.context", profiles="RSN", needs=("cuda.init",), uses=("cuda",), per_gpu=True, gpu_only=True)
async def context_(context: Context, job: Job) -> Finding:
    """Can a context be made on the GPU?"""
    init = await context.answer("cuda", "init", job.target)
    if init.code:
        summary = f"cuInit gives {init.code}, {init.text}, for this GPU alone"
        return failed(summary, cuda_code=init.code, step="cuInit")
    made = await context.answer("cuda", "context", job.target)
    if made.code == OUT_OF_MEMORY:
        return skipped("out of memory: no context fits beside what is on the GPU", cuda_code=made.code)
    if made.code:
        call = made.data.get("call", "context")
        return failed(f"{call} gives {made.code}, {made.text}", cuda_code=made.code, step=str(call))
    rungs = (Rung("init", Status.PASS, init.elapsed_s), Rung("context", Status.PASS, made.elapsed_s))
    summary = f"{made.data['name']}, context in {made.elapsed_s:.2f} s"
    data = {
        "gpu_name": made.data["name"],
        "free_bytes": made.data["free_bytes"],
        "total_bytes": made.data["total_bytes"],
    }
    return Finding(Status.PASS, summary, data, rungs)
