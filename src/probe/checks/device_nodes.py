"""The device nodes of the GPUs: there, and this process may open them.

A process that CUDA would be used from needs /dev/nvidiactl and one /dev/nvidia<n> per GPU. EPERM or EACCES on a node
that exists is how a container looks that lost its device permission (NVIDIA/nvidia-container-toolkit#48).
"""

import errno
import os
import re

from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.registry import check

GPU_NODE = re.compile(r"nvidia\d+")
DENIED = (errno.EPERM, errno.EACCES)


@check("device.nodes", profiles="RLSN", uses=("files.nodes",), gpu_only=True)
async def nodes(context: Context, job: Job) -> Finding:
    """Are the GPUs' device nodes here, and may this process open them?"""
    gpus = [name for name in context.facts.nodes if GPU_NODE.fullmatch(name)]
    expected = context.expected
    if not gpus:
        why = f"no /dev/nvidia<n> here, GPUs expected ({expected.reason})"
        return failed(why, reason="expected_absent", expected=expected.count, found=0)
    if "nvidiactl" not in context.facts.nodes:
        return failed(f"/dev/nvidiactl is missing beside {len(gpus)} GPU nodes", reason="missing", found=len(gpus))
    for name in ("nvidiactl", *gpus):
        opened = await context.answer("files", f"open:/dev/{name}")
        if opened.code:
            word = errno.errorcode.get(opened.code, str(opened.code))
            reason = "eperm" if opened.code in DENIED else "enxio"
            summary = f"/dev/{name} cannot be opened by uid {os.geteuid()}: {opened.text} ({word})"
            return failed(summary, reason=reason, errno=opened.code, node=f"/dev/{name}")
    if len(gpus) < expected.count and not expected.mig:
        summary = f"{len(gpus)} of {expected.count} GPU nodes ({expected.reason})"
        return failed(summary, reason="missing", expected=expected.count, found=len(gpus))
    return passed(f"nvidiactl and {len(gpus)} GPU nodes open", found=len(gpus))
