"""torch can be imported, in a process of its own that is the one the tensor tests are forked from."""

from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.registry import check

IMPORT_RAISED, CUDA_INITIALISED = 1, 2


@check("torch.import", profiles="RSN", uses=("torch",))
async def import_(context: Context, job: Job) -> Finding:
    """Can torch be imported?"""
    if context.torch is None:
        return failed(context.torch_missing, reason="torch_missing")
    imported = await context.answer("torch", "import")
    if imported.code == IMPORT_RAISED:
        reason = "torch_missing" if imported.data.get("missing") else "import_error"
        return failed(f"import torch: {imported.text}", reason=reason)
    if imported.code == CUDA_INITIALISED:
        summary = "importing torch initialised CUDA: something in this image does at import what a fork cannot survive"
        return failed(summary, reason="cuda_initialised")
    version = imported.data["version"]
    return passed(f"torch {version} in {imported.elapsed_s:.2f} s", version=version, file=imported.data["file"])
