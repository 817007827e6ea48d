"""Who counts how many GPUs, and who is the odd one out.

NVML ignores CUDA_VISIBLE_DEVICES, CUDA and torch do not; CUDA shows one MIG instance a process, so with MIG on nothing
is compared with NVML. ``CUDA_VISIBLE_DEVICES=1,7`` with two GPUs silently gives one device (measured on an H100 host):
the list ends at the first name that means nothing.
"""

from collections import Counter
from collections.abc import Mapping

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, Record, Scalar, failed, passed
from probe.registry import check

COUNT = "count"


@check("cuda.counts", profiles="RSN", needs=("cuda.init",), uses=("cuda", "nvml"), gpu_only=True)
async def counts(context: Context, job: Job) -> Finding:
    """Do the device nodes, NVML, CUDA, torch and what was asked for agree on how many GPUs there are?"""
    devices = await context.answer("cuda", "devices")
    if devices.code:
        return failed(f"CUDA cannot list its devices: {devices.code}, {devices.text}", cuda_code=devices.code)
    listed = await _unless_silent(context, "nvml", "gpus")
    gpus = listed.data["gpus"] if listed else []
    mig = any(gpu.get("mig") for gpu in gpus)
    seen = {"CUDA": len(devices.data["uuids"]), **await _torch(context)}
    nodes = sum(name.removeprefix("nvidia").isdigit() for name in context.facts.nodes)
    of_the_host = {**({"device nodes": nodes} if nodes else {}), **({"NVML": len(gpus)} if listed else {})}
    if visible := context.facts.cuda_visible:
        named = len([name for name in visible.split(",") if name.strip()])
        compared = {"CUDA_VISIBLE_DEVICES": named, **seen}
    elif mig:
        compared = seen
    else:
        compared = {**of_the_host, **seen}
    data: dict[str, Scalar] = {name.lower().replace(" ", "_"): count for name, count in compared.items()}
    data["mig"] = mig
    expected = context.expected
    if not visible and not mig and seen["CUDA"] < expected.count and not expected.mig:
        summary = f"CUDA sees {seen['CUDA']} GPUs, {expected.count} expected ({expected.reason})"
        return failed(summary, reason="counts_differ", expected=expected.count, **data)
    if odd := odd_one_out(compared) or ("" if mig else odd_one_out(of_the_host)):
        return failed(odd, reason="visible_devices" if visible else "counts_differ", **data)
    asked = f" (asked for: {visible})" if visible else "; MIG is on, a process sees one instance" if mig else ""
    return passed(f"{', '.join(f'{name} {count}' for name, count in compared.items())}{asked}", **data)


def odd_one_out(compared: Mapping[str, int]) -> str:
    """Who differs from the others, in words; empty when all agree. Of two that differ the one that sees less."""
    votes = Counter(compared.values())
    if len(votes) <= 1:
        return ""
    most = max(votes, key=lambda count: (votes[count], count))
    odd = ", ".join(f"{name} {count}" for name, count in compared.items() if count != most)
    others = ", ".join(f"{name} {count}" for name, count in compared.items() if count == most)
    return f"the counts of GPUs differ: {odd}, against {others}"


async def _torch(context: Context) -> dict[str, int]:
    """What torch counts, where it is imported for other checks anyway."""
    if "torch" not in context.workers or not (context.torch and context.torch["cuda"]):
        return {}  # a build without CUDA counts none, and torch.build says so
    counted = await _unless_silent(context, "torch", COUNT, COUNT)
    return {"torch": int(counted.data["count"])} if counted and counted.code == 0 else {}


async def _unless_silent(context: Context, worker: str, key: str, target: str = "") -> Record | None:
    """An answer that is not needed for a verdict: the check that needs it says why it is missing."""
    try:
        return await context.answer(worker, key, target)
    except NoAnswer:
        return None
