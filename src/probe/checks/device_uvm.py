"""The unified-memory node, without which CUDA cannot start while NVML and nvidia-smi work (nvidia-docker#1085).

Its major number is given out anew at each load of nvidia_uvm, so a node made in another life of the module is stale.
"""

import errno

from probe.context import Context
from probe.model import Finding, Job, failed, passed, warned
from probe.registry import check

NODE = "nvidia-uvm"
HELPER = "/usr/bin/nvidia-modprobe"


@check("device.uvm", profiles="RLSN", uses=("files.nodes",), gpu_only=True)
async def uvm(context: Context, job: Job) -> Finding:
    """Is /dev/nvidia-uvm here, current and open to this process?"""
    major = _major(context.host.text("/proc/devices"))
    if NODE not in context.facts.nodes:
        if not context.facts.in_container and "nvidia-modprobe" in context.host.names("/usr/bin"):
            return warned(f"/dev/{NODE} is not there yet; {HELPER} makes it at CUDA's first use", reason="not_yet")
        loaded = "" if major is not None else ", and nvidia_uvm is not in /proc/devices"
        return failed(f"/dev/{NODE} is missing{loaded}: CUDA cannot start", reason="missing")
    opened = await context.answer("files", f"open:/dev/{NODE}")
    if opened.code:
        word = errno.errorcode.get(opened.code, str(opened.code))
        reason = "eperm" if opened.code in (errno.EPERM, errno.EACCES) else "enxio"
        return failed(f"/dev/{NODE} cannot be opened: {opened.text} ({word})", reason=reason, errno=opened.code)
    found = opened.data["major"]
    if major is not None and found != major:
        summary = f"/dev/{NODE} has major {found}, nvidia-uvm is {major} in /proc/devices: the node is stale"
        return failed(summary, reason="stale_major", major=found, expected_major=major)
    return passed(f"/dev/{NODE} opens, major {found}", major=found)


def _major(devices: str) -> int | None:
    """The major number of nvidia-uvm in the text of /proc/devices."""
    for line in devices.splitlines():
        number, _, name = line.strip().partition(" ")
        if name.strip() == NODE:
            return int(number)
    return None
