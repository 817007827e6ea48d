"""Who counts how many GPUs, and who is the odd one out.

NVML ignores CUDA_VISIBLE_DEVICES and CUDA does not; CUDA shows one MIG instance a process. ``CUDA_VISIBLE_DEVICES=1,7``
with two GPUs silently gives one device (measured on an H100 host): the list ends at the first name that means nothing.
"""

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, Scalar, failed, passed
from probe.registry import check


@check("cuda.counts", profiles="RSN", needs=("cuda.init",), uses=("cuda", "nvml"), gpu_only=True)
async def counts(context: Context, job: Job) -> Finding:
    """Do the device nodes, NVML, CUDA and what was asked for agree on how many GPUs there are?"""
    devices = await context.answer("cuda", "devices")
    if devices.code:
        return failed(f"CUDA cannot list its devices: {devices.code}, {devices.text}", cuda_code=devices.code)
    cuda = len(devices.data["uuids"])
    nodes = sum(name.removeprefix("nvidia").isdigit() for name in context.facts.nodes)
    nvml, mig = await _nvml(context)
    data: dict[str, Scalar] = {"cuda": cuda, "nvml": nvml, "nodes": nodes, "mig": mig}
    said = f"device nodes {nodes}, NVML {'?' if nvml is None else nvml}, CUDA {cuda}"
    if visible := context.facts.cuda_visible:
        named = len([name for name in visible.split(",") if name.strip()])
        if cuda < named:
            summary = f"CUDA_VISIBLE_DEVICES={visible} names {named} GPUs, CUDA sees {cuda}"
            return failed(summary, reason="visible_devices", expected=named, found=cuda, **data)
        return passed(f"CUDA sees the {cuda} of CUDA_VISIBLE_DEVICES={visible} ({said})", **data)
    if mig:
        return passed(f"{said}; MIG is on, CUDA shows one instance a process", **data)
    if nvml is not None and nvml != cuda:
        return failed(f"the counts differ: {said}", expected=nvml, found=cuda, **data)
    return passed(said, **data)


async def _nvml(context: Context) -> tuple[int | None, bool]:
    """NVML's count, None where NVML does not say, and whether MIG is on anywhere."""
    try:
        listed = await context.answer("nvml", "gpus")
    except NoAnswer:
        return None, False
    gpus = listed.data["gpus"]
    return len(gpus), any(gpu.get("mig") for gpu in gpus)
