"""The build of torch fits this machine: its CUDA against the driver's, read from torch/version.py without an import.

Within a CUDA major version any minor runs on any driver of that major (NVIDIA's minor-version compatibility); a newer
major than the driver's does not, unless a compatibility package is in use, which cuDriverGetVersion then shows. In an
NVIDIA image a torch without ``a0`` or ``+nv`` in its version is one that pip put in its place (dynamo PR#2569); wheels
for two CUDA majors side by side load two runtimes into one process (sglang PR#22833).
"""

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, Scalar, failed, passed, skipped, warned
from probe.registry import check


@check("torch.build", profiles="RSN", uses=("torch",))
async def build(context: Context, job: Job) -> Finding:  # noqa: PLR0911 - one way to be unfit each
    """Is torch the build that this image and this machine's driver want?"""
    if context.torch is None:
        return skipped("torch not installed")
    version, cuda = context.torch["version"] or "of unknown version", context.torch["cuda"]
    data: dict[str, Scalar] = {"version": version, "cuda": cuda, "git_version": context.torch.get("git_version")}
    if not context.expected.gpus:
        return passed(f"torch {version}, {'CUDA ' + cuda if cuda else 'a CPU build'}; no GPU expected", **data)
    if not cuda:
        summary = f"torch {version} is built without CUDA, GPUs expected ({context.expected.reason})"
        return failed(summary, reason="cpu_build", **data)
    driver = await _driver_cuda(context)
    if driver is None:
        return warned(f"torch {version} for CUDA {cuda}; nobody says which CUDA the driver offers", **data)
    offered = data["driver_cuda"] = f"{driver // 1000}.{driver % 1000 // 10}"
    if int(cuda.partition(".")[0]) > driver // 1000:
        summary = f"torch {version} needs CUDA {cuda}, the driver offers {offered}"
        return failed(summary, reason="cuda_too_new", **data)
    data |= await _libraries(context)
    shipped = context.host.env.get("NVIDIA_PYTORCH_VERSION")
    if shipped and "a0" not in version and "+nv" not in version:
        summary = f"torch {version} stands in the place of NVIDIA's own build of this image ({shipped})"
        return warned(summary, reason="vendor_replaced", **data)
    if " " in str(data.get("cuda_majors", "")):
        summary = f"wheels for two CUDA versions are installed beside torch {version}: {data['cuda_majors']}"
        return warned(summary, reason="two_cuda_majors", **data)
    return passed(f"torch {version} for CUDA {cuda}, driver offers {offered}", **data)


async def _driver_cuda(context: Context) -> int | None:
    """The CUDA version of the driver, e.g. 13000, by whoever is asked anyway; None where nobody says it."""
    for worker in ("nvml", "cuda"):
        if worker not in context.workers:
            continue
        try:
            init = await context.answer(worker, "init")
        except NoAnswer:
            continue
        if found := init.data.get("driver_cuda"):
            return int(found)
    return None


async def _libraries(context: Context) -> dict[str, Scalar]:
    """NCCL's and cuDNN's versions and the CUDA majors of the wheels beside torch, as its import found them."""
    try:
        said = (await context.answer("torch", "import")).data
    except NoAnswer:
        return {}
    return {name: said[name] for name in ("nccl", "cudnn", "cuda_majors") if name in said}
