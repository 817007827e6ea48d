"""What the driver itself says must be done with the GPU: NVML field 230, from driver 570 on.

The words are those of NVIDIA's GPU memory error management guide, "Error Recovery and Response Flags"; 5 to 7 are
younger (nvmlDeviceGpuRecoveryAction_t). NVRx fails on any value but 0 too. An action that this file does not know is
unknown: it is a newer driver's, and may be anything.
"""

from probe.context import Context
from probe.model import Finding, Job, failed, passed, unknown
from probe.registry import check

ACTIONS = (
    "nothing",
    "reset the GPU",
    "reboot the node",
    "drain peer-to-peer traffic",
    "drain the GPU, then reset it",
    "recover the IMEX domain",
    "reset the GPU's PCIe bus",
    "reboot the whole system",
)


@check("nvml.recovery", profiles="RN", needs=("nvml.reach",), uses=("nvml.recovery",), per_gpu=True, gpu_only=True)
async def recovery(context: Context, job: Job) -> Finding:
    """Does the driver ask for anything to be done with the GPU?"""
    action = int((await context.nvml("recovery", job.target)).data["action"])
    if action == 0:
        return passed("the driver asks for nothing (recovery action 0)", recovery_action=0)
    if not 0 < action < len(ACTIONS):
        summary = f"the driver asks for recovery action {action}, known are 0 to {len(ACTIONS) - 1}"
        return unknown(summary, recovery_action=action)
    return failed(f"the driver asks to {ACTIONS[action]} (recovery action {action}, not 0)", recovery_action=action)
