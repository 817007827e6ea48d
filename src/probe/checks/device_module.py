"""The kernel module: loaded, and of which version.

A container sees the host's /proc/devices and /proc/modules. gVisor shows neither, and NVML and CUDA decide there.
"""

import re

from probe.context import Context
from probe.model import Finding, Job, failed, passed, skipped
from probe.registry import check

VERSION = re.compile(r"NVRM version:.*?\s(\d+\.\d[\d.]*)\s")


@check("device.module", profiles="RLSN", uses=("files.module",), gpu_only=True)
async def module(context: Context, job: Job) -> Finding:
    """Is the NVIDIA kernel module loaded, and which version is it?"""
    if "gVisor" in context.host.text("/proc/version"):
        return skipped("gVisor shows no kernel modules: NVML and CUDA decide")
    version = await context.answer("files", "text:/proc/driver/nvidia/version")
    if version.code == 0:
        found = VERSION.search(version.data["content"])
        return passed(
            f"nvidia module {found[1] if found else '(of unknown version)'}", version=found[1] if found else ""
        )
    if context.facts.driver_loaded:
        return passed("nvidia is in /proc/devices; its version is not shown here", version="")
    loaded = {line.split(" ", 1)[0] for line in context.host.text("/proc/modules").splitlines()}
    beside = "; nouveau is loaded instead" if "nouveau" in loaded else ""
    return failed(f"the nvidia kernel module is not loaded on this host{beside}", reason="missing")
