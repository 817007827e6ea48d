"""The GPU's NVLinks are up. Critical in the node profile: a job of one GPU never notices, one of eight crawls.

NVIDIA's Health Validation allows no inactive link on A100, H100 and GB200. Where *none* is active there is mostly
nothing to connect to: a PCIe board without bridge (NVSentinel#1481), a VM of one GPU, MIG. On an SXM board beside
others that is a warning; whether Hopper and later have joined their fabric is `nvml.fabric`'s question.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, Threshold, failed, passed, skipped, warned
from probe.registry import check


@check(
    "nvml.nvlink",
    severity="advisory",
    critical_in="N",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.nvlink",),
    per_gpu=True,
    gpu_only=True,
    thresholds={"max_inactive_links": Threshold(0, "NVIDIA Health Validation: max_inactive 0")},
)
async def nvlink(context: Context, job: Job) -> Finding:
    """Are all NVLinks of the GPU up?"""
    found = (await context.nvml("nvlink", job.target)).data
    links: int = found["links"]
    down: list[int] = found["inactive"]
    product = context.product(job.target)
    data: dict[str, Scalar] = {
        "nvlinks": links,
        "nvlinks_inactive": len(down),
        "nvlinks_down": ", ".join(map(str, down)),
        "nvlink_version": found["version"],
        "nvlink_mbps": found["mbps"],
    }
    if not links:
        return skipped(f"{product} has no NVLink", **data)
    if context.mig_on(job.target):
        return skipped(f"{links - len(down)} of {links} NVLinks are up; with MIG on they are not used", **data)
    if len(down) == links and "SXM" in product and len(context.gpus.now or ()) > 1:
        return warned(f"0 of {links} NVLinks are up on an SXM board", reason="none_up", **data)
    if len(down) == links:
        return skipped(f"0 of {links} NVLinks are up: {product} is not connected by NVLink here", **data)
    most = job.thresholds["max_inactive_links"]
    if len(down) > most:
        summary = f"{len(down)} of {links} NVLinks are down ({data['nvlinks_down']}), at most {most:g} allowed"
        return failed(summary, reason="down", **data)
    return passed(f"{links - len(down)} of {links} NVLinks are up", **data)
