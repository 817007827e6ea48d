"""The build of torch fits this machine: its CUDA against the driver's, read from torch/version.py without an import.

Within a CUDA major version any minor runs on any driver of that major (NVIDIA's minor-version compatibility); a newer
major than the driver's does not, unless a compatibility package is in use, which cuDriverGetVersion then shows.
"""

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, failed, passed, skipped, warned
from probe.registry import check


@check("torch.build", profiles="RSN", uses=("torch", "cuda", "nvml"))
async def build(context: Context, job: Job) -> Finding:
    """Is torch built for the driver of this machine?"""
    if context.torch is None:
        return skipped("torch not installed")
    version, cuda = context.torch["version"], context.torch["cuda"]
    data = {"version": version, "cuda": cuda, "git_version": context.torch.get("git_version")}
    if not context.expected.gpus:
        return passed(f"torch {version}, {'CUDA ' + cuda if cuda else 'a CPU build'}; no GPU expected", **data)
    if not cuda:
        summary = f"torch {version} is built without CUDA, GPUs expected ({context.expected.reason})"
        return failed(summary, reason="cpu_build", **data)
    driver = await _driver_cuda(context)
    if driver is None:
        return warned(f"torch {version} for CUDA {cuda}; nobody says which CUDA the driver offers", **data)
    offered = f"{driver // 1000}.{driver % 1000 // 10}"
    data["driver_cuda"] = offered
    if int(cuda.partition(".")[0]) > driver // 1000:
        summary = f"torch {version} needs CUDA {cuda}, the driver offers {offered}"
        return failed(summary, reason="cuda_too_new", **data)
    return passed(f"torch {version} for CUDA {cuda}, driver offers {offered}", **data)


async def _driver_cuda(context: Context) -> int | None:
    """The CUDA version of the driver, e.g. 13000, by whoever knows it; None where nobody does."""
    for worker in ("cuda", "nvml"):
        try:
            init = await context.answer(worker, "init")
        except NoAnswer:
            continue
        if found := init.data.get("driver_cuda"):
            return int(found)
    return None
