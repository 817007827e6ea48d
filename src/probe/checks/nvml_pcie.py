"""The GPU's PCIe link: how many lanes, and of which generation.

The most that device *and* slot can do is NVML's own maximum, so fewer lanes than that mean a link that did not train:
a card to reseat, a riser or a slot to replace (DCGM's pcie plugin fails on the width too). The generation drops when a
GPU idles, to save power, so it is judged only while the GPU is at work, and reported otherwise.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, skipped, unknown, warned
from probe.registry import check

WIDTHS = (1, 2, 4, 8, 12, 16, 32)
GENERATIONS = range(1, 9)


@check(
    "nvml.pcie",
    severity="advisory",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.pcie", "nvml.utilization"),
    per_gpu=True,
    gpu_only=True,
    thresholds={
        "max_missing_lanes": Threshold(0, "DCGM's pcie plugin: the full width"),
        "loaded_percent": Threshold(50, "a rule of probe: a GPU at work half of the last sample is not idle"),
    },
)
async def pcie(context: Context, job: Job) -> Finding:
    """Does the GPU's PCIe link run with all its lanes?"""
    found = (await context.nvml("pcie", job.target)).data
    width, most = found["width"], found["max_width"]
    generation, highest = found["generation"], found["max_generation"]
    load = await _load_percent(context, job.target)
    data: dict[str, Scalar] = {
        "pcie_lanes": width,
        "pcie_max_lanes": most,
        "pcie_generation": generation,
        "pcie_max_generation": highest,
        "load_percent": load,
    }
    said = f"PCIe {generation} x{width} of {highest} x{most}"
    if not width and not most:
        return skipped(f"{context.product(job.target)} tells of no PCIe link (0 lanes)", **data)
    if {width, most} - set(WIDTHS) or {generation, highest} - set(GENERATIONS) or width > most:
        return unknown(f"NVML's PCIe link makes no sense: {said}", **data)
    if most - width > job.thresholds["max_missing_lanes"]:
        return failed(f"the PCIe link runs with {width} of {most} lanes", reason="narrow", **data)
    if generation < highest and load is not None and load >= job.thresholds["loaded_percent"]:
        summary = f"the PCIe link runs at generation {generation} of {highest} while the GPU is {load} % busy"
        return warned(summary, reason="slow", **data)
    idle = ", the generation of an idle GPU" if generation < highest else ""
    return passed(f"{said}{idle}", **data)


async def _load_percent(context: Context, target: str) -> int | None:
    """How busy the GPU was in the last sample, None where that is not known."""
    found = await context.answer("nvml", "utilization", target)
    return int(found.data["percent"]) if found.code == 0 else None
