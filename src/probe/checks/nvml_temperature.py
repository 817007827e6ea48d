"""How hot the GPU is, against the thresholds that the device itself tells.

Before Hopper they are absolute. From Hopper on the device tells a margin, the degrees left to its highest operating
temperature, and at which margins it slows down (-2 on an H100) and shuts down (-8): "T.Limit" in nvidia-smi. Beyond
the slowdown threshold fails (NVSentinel's design 042), beyond the highest operating temperature warns, and so for the
memory (gpud's temperature component).

A margin is believed only where temperature + margin is a temperature at which GPUs slow down: gpud saw margins of 0
and -5 on healthy H100s and had to stop judging them (gpud#1208). A threshold outside that range, 0 for example, is
taken for none. Where the device tells no threshold at all, healthagent's 93 degrees count.
"""

from collections.abc import Mapping

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, unknown, warned
from probe.registry import check

SENSIBLE = range(-50, 201)
LIMITS = range(60, 131)
"""Where thresholds lie: 85 to 105 degrees for every GPU whose data sheet says, with room on both sides."""


@check(
    "nvml.temperature",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.temperature",),
    per_gpu=True,
    gpu_only=True,
    thresholds={
        "min_room_celsius": Threshold(0, "NVSentinel design 042: below the device's own slowdown threshold"),
        "max_celsius": Threshold(93, "healthagent defaults.yaml; only where the device tells no threshold"),
    },
)
async def temperature(context: Context, job: Job) -> Finding:
    """Is the GPU cooler than the temperature at which it slows down?"""
    found = (await context.nvml("temperature", job.target)).data
    data: dict[str, Scalar] = {f"{key}_celsius": value for key, value in found.items() if value is not None}
    gpu: int = found["gpu"]
    if gpu not in SENSIBLE:
        return unknown(f"NVML's temperature makes no sense: {gpu} °C", **data)
    own, highest = threshold(found, "slowdown"), threshold(found, "gpu_max")
    slowdown = job.thresholds["max_celsius"] if own is None else own
    limit = f"it slows down at {slowdown:g} °C" if own else f"at most {slowdown:g} °C, since it tells no threshold"
    if slowdown - gpu < job.thresholds["min_room_celsius"]:
        return failed(f"the GPU has {gpu} °C, {limit}", reason="slowdown", **data)
    if highest is not None and gpu > highest:
        return warned(f"the GPU has {gpu} °C, at most {highest} °C is its operating range", reason="gpu_max", **data)
    memory, memory_max = found["memory"], found["memory_max"]
    if memory in SENSIBLE and memory_max in LIMITS and memory > memory_max:
        summary = f"the GPU's memory has {memory} °C, at most {memory_max} °C is its operating range"
        return warned(summary, reason="memory_max", **data)
    return passed(f"the GPU has {gpu} °C, {limit}", **data)


def threshold(found: Mapping[str, int | None], name: str) -> int | None:
    """A threshold of the device as an absolute temperature, by its margin where that can be believed."""
    gpu, margin, at_margin = found["gpu"], found["margin"], found[f"{name}_margin"]
    if gpu is not None and margin is not None and at_margin in SENSIBLE and gpu + margin in LIMITS:
        return gpu + margin - (at_margin or 0)
    absolute = found[name]
    return absolute if absolute in LIMITS else None
