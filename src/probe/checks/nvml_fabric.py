"""Whether the GPU has joined its NVLink fabric, and how it fares there (nvmlDeviceGetGpuFabricInfoV).

Without it CUDA says 802 on HGX H100 and later. States: 0 has none (PCIe boards, GPUs before Hopper: skipped), 1 not
started, 2 in progress, 3 complete; `status` counts only at 3 (NVML: "must be checked only if state returns complete").
In progress is a failure here, not a warning: for as long as it lasts nothing can compute, and where Fabric Manager has
died it lasts for ever (NVSentinel#883). A GPU that has not started and has no active NVLink has no fabric to join, as
in a VM of one GPU.

The health mask holds small fields (NVML_GPU_FABRIC_HEALTH_MASK_*). What stops traffic fails, what slows it warns. The
oldest form of the call has no mask: then the state alone is judged.
"""

from probe.context import Context
from probe.model import Finding, Job, Scalar, failed, passed, skipped, unknown, warned
from probe.registry import check

NO_FABRIC, NOT_STARTED, IN_PROGRESS, COMPLETE = range(4)
TRUE = 1
SLOW = ((0, "its bandwidth"), (2, "routes are being recovered"), (6, "an access timeout is being recovered"))
UNHEALTHY_ROUTE_SHIFT = 4
CONFIGURATION_SHIFT, CONFIGURATION_WIDTH, CONFIGURATION_NONE = 8, 0xF, 1
CONFIGURATIONS = (
    "",
    "",
    "incorrect system GUID",
    "incorrect chassis serial number",
    "no partition",
    "insufficient NVLinks",
    "incompatible GPU firmware",
    "invalid location",
    "invalid GPU state",
)
SUMMARY_UNHEALTHY, SUMMARY_LIMITED = 2, 3


@check(
    "nvml.fabric",
    profiles="RN",
    needs=("nvml.reach",),
    uses=("nvml.fabric", "nvml.nvlink"),
    per_gpu=True,
    gpu_only=True,
)
async def fabric(context: Context, job: Job) -> Finding:
    """Has the GPU joined its NVLink fabric, and is it healthy there?"""
    found = (await context.nvml("fabric", job.target)).data
    state, status = found["state"], found["status"]
    data: dict[str, Scalar] = {"fabric_state": state, "fabric_status": status}
    if state == NO_FABRIC:
        return skipped(f"{context.product(job.target)} has no NVLink fabric (state 0)", **data)
    if state == NOT_STARTED and not await _linked(context, job.target):
        return skipped("no NVLink is active, so there is no fabric to join (state 1)", **data)
    if state in (NOT_STARTED, IN_PROGRESS):
        doing = "has not begun to join" if state == NOT_STARTED else "is still joining"
        return failed(f"the GPU {doing} its NVLink fabric (state {state}, complete is 3)", reason="not_joined", **data)
    if state != COMPLETE:
        return unknown(f"NVML's fabric state makes no sense: {state}, known are 0 to 3", **data)
    if status:
        return failed(f"the GPU could not join its NVLink fabric (status {status}, success is 0)", **data)
    return _health(found["health_mask"], found["health_summary"], data)


async def _linked(context: Context, target: str) -> bool:
    found = await context.answer("nvml", "nvlink", target)
    return found.code == 0 and found.data["links"] > len(found.data["inactive"])


def _health(mask: int | None, summary: int | None, data: dict[str, Scalar]) -> Finding:
    """What mask and summary say of a GPU that has joined; None: this driver has no such value."""
    if mask is None:
        return passed("the GPU has joined its NVLink fabric (state 3); its health is not known to this driver", **data)
    data = {**data, "fabric_health_mask": mask, "fabric_health_summary": summary}
    said = f"(health mask {mask:#x}, summary {summary})"
    if bad := _broken(mask, summary):
        return failed(f"the GPU's NVLink fabric is unhealthy: {', '.join(bad)} {said}", **data)
    slow = [why for shift, why in SLOW if mask >> shift & 3 == TRUE]
    if slow or summary == SUMMARY_LIMITED:
        return warned(f"the GPU's NVLink fabric is degraded: {', '.join(slow) or 'limited capacity'} {said}", **data)
    return passed(f"the GPU has joined its NVLink fabric and is healthy there {said}", **data)


def _broken(mask: int, summary: int | None) -> list[str]:
    found = ["its route is unhealthy"] if mask >> UNHEALTHY_ROUTE_SHIFT & 3 == TRUE else []
    configuration = mask >> CONFIGURATION_SHIFT & CONFIGURATION_WIDTH
    if configuration > CONFIGURATION_NONE:
        known = CONFIGURATIONS[configuration : configuration + 1]
        found.append(known[0] if known else f"wrong configuration {configuration}")
    return found or (["so its summary says"] if summary == SUMMARY_UNHEALTHY else [])
