"""NVML starts: the library is there and fits the kernel module. Codes are NVML's own (nvmlReturn_t)."""

from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.registry import check

LIBRARY_NOT_FOUND = 12
VERSION_MISMATCH = 18


@check("nvml.reach", profiles="RLSN", uses=("nvml",), gpu_only=True)
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
    beside = f" (library {data['library'].rpartition('/')[2]})" if init.code == VERSION_MISMATCH else ""
    return failed(f"NVML {init.code}: {init.text}{beside}", **data)
