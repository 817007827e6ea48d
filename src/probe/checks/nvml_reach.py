"""NVML starts: the library is there and fits the kernel module. Codes are NVML's own (nvmlReturn_t)."""

import re

from probe.context import Context
from probe.model import Finding, Job, NoAnswer, failed, passed
from probe.registry import check

VERSION = re.compile(r"NVRM version:.*?\s(\d+\.\d[\d.]*)\s")
LIBRARY_NOT_FOUND = 12
VERSION_MISMATCH = 18


@check("nvml.reach", profiles="RLSN", uses=("nvml", "files.module"), gpu_only=True)
async def reach(context: Context, job: Job) -> Finding:
    """Does NVML start?"""
    init = await context.answer("nvml", "init")
    if init.code == 0:
        cuda = init.data["driver_cuda"]
        driver = init.data["driver_version"]
        summary = f"driver {driver}, CUDA {cuda // 1000}.{cuda % 1000 // 10}, in {init.elapsed_s * 1000:.0f} ms"
        return passed(summary, driver_version=driver, driver_cuda=cuda)
    data = {"nvml_code": init.code, "library": init.data.get("library", "")}
    if init.code == LIBRARY_NOT_FOUND:
        return failed("NVML 12: libnvidia-ml.so.1 cannot be loaded", reason="library_missing", **data)
    if init.code == VERSION_MISMATCH:
        versions = f"kernel module {await _kernel_module(context)}, library {data['library'].rpartition('/')[2]}"
        return failed(f"NVML 18: driver/library version mismatch ({versions})", **data)
    return failed(f"NVML {init.code}: {init.text}", **data)


async def _kernel_module(context: Context) -> str:
    """The version of the loaded kernel module, as far as it can be read."""
    try:
        version = await context.answer("files", "text:/proc/driver/nvidia/version")
    except NoAnswer:
        return "unknown"
    found = VERSION.search(version.data.get("content", ""))
    return found[1] if found else "unknown"
