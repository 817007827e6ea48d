"""Asks NVML everything that was planned: one thread per GPU, one record per answer, as soon as it is known.

::

    init -> count -> per index, in a thread each:  handle, uuid, ... -> getter, getter, ...
                     when all have a handle, or LIST_AFTER_S: the record "gpus"

NVML is initialised without GPUs, so that each is attached in its own thread and one that hangs hides no other. The
only file that imports pynvml (from nvidia-ml-py). NVML ignores ``CUDA_VISIBLE_DEVICES`` and numbers GPUs its own way:
everything is joined by UUID.
"""

import threading
from collections.abc import Callable
from typing import Any

import pynvml

LIST_AFTER_S = 1.0
"""GPUs without persistence mode take 1 to 3 s each to attach (NVIDIA's driver-persistence documentation); the list
goes out without those, named as pending, and the parent completes it from /proc/driver/nvidia."""


def main(child: Any, job: dict[str, Any]) -> None:
    """`job["getters"]`: which of `GETTERS` to ask of every GPU."""
    if not _init(child):
        return
    child.step("nvmlDeviceGetCount")
    ok, count = _ask(child, "count", "", pynvml.nvmlDeviceGetCount, "count")
    if ok:
        Gpus(child, count, job["getters"]).run()


def _init(child: Any) -> bool:
    elapsed = child.timed()
    child.step("nvmlInit")
    try:
        pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)
        driver = pynvml.nvmlSystemGetDriverVersion()
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    except pynvml.NVMLError as error:
        child.say("init", code=error.value, text=str(error), elapsed_s=elapsed(), library=_library())
        return False
    child.say("init", code=0, elapsed_s=elapsed(), driver_version=driver, driver_cuda=cuda)
    return True


def _library() -> str:
    """The path of the libnvidia-ml that was loaded: its name ends in the driver version it belongs to."""
    with open("/proc/self/maps") as maps:
        return next((line.split()[-1] for line in maps if "libnvidia-ml" in line), "")


def _ask(child: Any, key: str, target: str, call: Callable[[], Any], name: str = "") -> tuple[bool, Any]:
    """Make one call and say how it went: its data (a dict, or one value under `name`), or NVML's own code."""
    elapsed = child.timed()
    try:
        value = call()
    except pynvml.NVMLError as error:
        child.say(key, target, code=error.value, text=str(error), elapsed_s=elapsed())
        return False, None
    child.say(key, target, code=0, elapsed_s=elapsed(), **(value if isinstance(value, dict) else {name: value}))
    return True, value


class Gpus:
    """The GPUs of this host, by NVML's index."""

    def __init__(self, child: Any, count: int, getters: list[str]) -> None:
        self._child = child
        self._getters = getters
        self._listed: list[dict[str, Any]] = []
        self._pending = set(range(count))
        self._changed = threading.Condition()

    def run(self) -> None:
        threads = [threading.Thread(target=self._one, args=(index,), daemon=True) for index in sorted(self._pending)]
        for thread in threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, LIST_AFTER_S)
            gpus = sorted(self._listed, key=lambda gpu: int(gpu["index"]))
            pending = sorted(self._pending)
        self._child.say("gpus", code=0, gpus=gpus, pending=pending)
        for thread in threads:
            thread.join()

    def _one(self, index: int) -> None:
        """Attach one GPU, put it on the list, then ask it everything."""
        self._child.step(f"nvmlDeviceGetHandleByIndex({index})", f"attached:{index}")
        devices: dict[str, Any] = {}
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid = pynvml.nvmlDeviceGetUUID(handle)
            instances = _mig_devices(handle)
            gpu = {
                "index": index,
                "uuid": uuid,
                "name": pynvml.nvmlDeviceGetName(handle),
                "bus_id": pynvml.nvmlDeviceGetPciInfo(handle).busId,
                "mig": sorted(instances),
            }
            devices = {uuid: handle, **instances}
        except pynvml.NVMLError as error:
            gpu = {"index": index, "uuid": "", "code": error.value, "text": str(error)}
        self._child.say(f"attached:{index}", code=gpu.get("code", 0), text=str(gpu.get("text", "")))
        with self._changed:
            self._listed.append(gpu)
            self._pending.discard(index)
            self._changed.notify()
        for uuid, device in devices.items():
            self._interrogate(device, f"gpu:{uuid}")

    def _interrogate(self, handle: Any, target: str) -> None:
        for key in self._getters:
            self._child.step(key, target)
            _ask(self._child, key, target, lambda key=key: GETTERS[key](handle))  # type: ignore[misc]


def _mig_devices(handle: Any) -> dict[str, Any]:
    """The MIG instances of a GPU by UUID; not supported or not known to the driver means that there are none."""
    found: dict[str, Any] = {}
    try:
        if pynvml.nvmlDeviceGetMigMode(handle)[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
            return found
        for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except pynvml.NVMLError_NotFound:  # the slots need not be filled in order
                continue
            found[pynvml.nvmlDeviceGetUUID(device)] = device
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NoPermission):
        return found
    return found


def _memory(handle: Any) -> dict[str, Any]:
    """Version 2: version 1 counts what the driver reserves as used since R510."""
    info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return {
        "total_bytes": info.total,
        "used_bytes": info.used,
        "free_bytes": info.free,
        "reserved_bytes": info.reserved,
    }


def _processes(handle: Any) -> dict[str, Any]:
    """Compute processes; in an ordinary container the list is empty or carries the host's pids."""
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    used = [process.usedGpuMemory for process in found]
    return {
        "count": len(found),
        "pids": [process.pid for process in found][:32],
        "used_bytes": sum(size for size in used if size is not None),
    }


def _utilization(handle: Any) -> dict[str, Any]:
    return {"percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu}


def _compute_mode(handle: Any) -> dict[str, Any]:
    mode = pynvml.nvmlDeviceGetComputeMode(handle)
    return {"mode": mode, "exclusive": mode == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS}


GETTERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "memory": _memory,
    "processes": _processes,
    "utilization": _utilization,
    "compute_mode": _compute_mode,
}
