"""Asks NVML everything that was planned: one thread per GPU, one record per answer, as soon as it is known.

::

    init -> count -> per index, in a thread each:  handle, uuid, ... -> getter, getter, ...
                     when all have a handle, or LIST_AFTER_S: the record "gpus"

NVML is initialised without GPUs, so that each is attached in its own thread and one that hangs hides no other. The
only file that imports pynvml (from nvidia-ml-py). NVML ignores ``CUDA_VISIBLE_DEVICES`` and numbers GPUs its own way:
everything is joined by UUID.

A getter's answer is whatever the driver says, None where it has no such value; what that means is its check's word. A
code that concerns the whole question is the record's code. Over 300 lines, most of them getters of five lines each.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Collection
from ctypes import byref
from functools import partial
from typing import Any

import pynvml

LIST_AFTER_S = 1.0
"""GPUs without persistence mode take 1 to 3 s each to attach (NVIDIA's driver-persistence documentation); the list
goes out without those, named as pending, and the parent completes it from /proc/driver/nvidia."""


def main(child: Any, job: dict[str, Any]) -> None:
    """`job["getters"]`: which of `GETTERS` to ask, of every GPU or of the one whose UUID is `job["only"]`.

    With `job["watch"]` instead: the GPUs whose readings are wanted every `job["every_s"]` seconds, until killed.
    """
    if not _init(child):
        return
    if "watch" in job:
        _watch(child, job["watch"], job["every_s"])
        return
    if "only" in job:
        handle = pynvml.nvmlDeviceGetHandleByUUID(job["only"])
        _interrogate(child, handle, f"gpu:{job['only']}", job["getters"])
        return
    child.step("nvmlDeviceGetCount")
    ok, count = _ask(child, "count", "", pynvml.nvmlDeviceGetCount, "count")
    if ok:
        Gpus(child, count, job["getters"]).run()


def _watch(child: Any, uuids: list[str], every_s: float) -> None:
    """Say of each GPU what moves while it works: ``probe bench`` sets its figures beside it."""
    handles = {f"gpu:{uuid}": pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
    while True:
        for target, handle in handles.items():
            _ask(child, "reading", target, partial(_reading, handle))
        time.sleep(every_s)


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
        self._list_is_out = threading.Event()

    def run(self) -> None:
        threads = [threading.Thread(target=self._one, args=(index,), daemon=True) for index in sorted(self._pending)]
        for thread in threads:
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, LIST_AFTER_S)
            gpus = sorted(self._listed, key=lambda gpu: int(gpu["index"]))
            pending = sorted(self._pending)
        self._child.say("gpus", code=0, gpus=gpus, pending=pending)
        self._list_is_out.set()
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
        self._list_is_out.wait()  # so that a crash in what follows does not take the list with it
        for uuid, device in devices.items():
            getters = set(self._getters) & set(WHO_USES_IT) if uuid in gpu["mig"] else self._getters
            _interrogate(self._child, device, f"gpu:{uuid}", getters)


def _interrogate(child: Any, handle: Any, target: str, getters: Collection[str]) -> None:
    """Ask in the order of `GETTERS`: what rungs 3 and 4 wait for goes first."""
    for key in [key for key in GETTERS if key in getters]:
        child.step(f"its {key.replace('_', ' ')} query", target)
        _ask(child, key, target, partial(GETTERS[key], handle))


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


# ---- getters: who uses it --------------------------------------------------------------------------------------------


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


# ---- getters: how it is ----------------------------------------------------------------------------------------------

FIELD_MEMORY_CELSIUS = 82
FIELD_SHUTDOWN_TLIMIT, FIELD_SLOWDOWN_TLIMIT, FIELD_MAX_TLIMIT = 193, 194, 196
FIELD_RECOVERY_ACTION = 230
"""Of NVML_FI_DEV_*; some are younger than the oldest nvidia-ml-py that probe runs with."""

NOT_HERE = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_InvalidArgument,
    pynvml.NVMLError_ArgumentVersionMismatch,
)
"""This GPU, or this driver, has no such value: no error of the GPU's."""


def _or_none(function: str, *arguments: Any) -> Any:
    """What one function gives, None where the GPU, the driver or the installed pynvml does not have it."""
    try:
        return getattr(pynvml, function)(*arguments) if hasattr(pynvml, function) else None
    except NOT_HERE:
        return None


def _fields(handle: Any, *ids: "int | tuple[int, int]") -> list[tuple[int, int]]:
    """Of each field, or (field, scope): NVML's code and the value; an unknown one counts as a missing function."""
    names = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal")  # by nvmlValueType_t
    try:
        fields = pynvml.nvmlDeviceGetFieldValues(handle, list(ids))
    except NOT_HERE as error:
        return [(error.value, 0)] * len(ids)
    found = []
    for field in fields:
        known = field.nvmlReturn != pynvml.NVML_ERROR_INVALID_ARGUMENT and field.valueType < len(names)
        code = field.nvmlReturn if known else pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
        found.append((code, 0 if code else int(getattr(field.value, names[field.valueType]))))
    return found


def _recovery(handle: Any) -> dict[str, Any]:
    ((code, action),) = _fields(handle, FIELD_RECOVERY_ACTION)
    if code:
        raise pynvml.NVMLError(code)
    return {"action": action}


def _mig(handle: Any) -> dict[str, Any]:
    current, pending = pynvml.nvmlDeviceGetMigMode(handle)
    return {"current": current, "pending": pending}


def _persistence(handle: Any) -> dict[str, Any]:
    return {"mode": pynvml.nvmlDeviceGetPersistenceMode(handle)}


def _ecc(handle: Any) -> dict[str, Any]:
    """Counts of the whole GPU; none while ECC is off. Volatile: since the driver was loaded or the GPU was reset."""
    mode, pending = pynvml.nvmlDeviceGetEccMode(handle)
    data = {"mode": mode, "pending": pending}
    if mode:
        for counter, since in enumerate(("volatile", "aggregate")):
            for kind, error in enumerate(("corrected", "uncorrected")):
                data[f"{since}_{error}"] = pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, counter)
    return data


def _remap(handle: Any) -> dict[str, Any]:
    corrected, uncorrected, pending, failed = pynvml.nvmlDeviceGetRemappedRows(handle)
    return {"corrected": corrected, "uncorrected": uncorrected, "pending": pending, "failed": failed}


def _sram(handle: Any) -> dict[str, Any]:
    status = pynvml.c_nvmlEccSramErrorStatus_v1_t()
    pynvml.nvmlDeviceGetSramEccErrorStatus(handle, byref(status))
    return {
        "exceeded": status.bThresholdExceeded,
        "volatile_uncorrected": status.volatileUncParity + status.volatileUncSecDed,
        "aggregate_uncorrected": status.aggregateUncParity + status.aggregateUncSecDed,
    }


def _pages(handle: Any) -> dict[str, Any]:
    """Retired pages, by why: NVML_PAGE_RETIREMENT_CAUSE_*. NotSupported since Ampere, which remaps rows instead."""
    return {
        "single_bit": len(pynvml.nvmlDeviceGetRetiredPages(handle, 0)),
        "double_bit": len(pynvml.nvmlDeviceGetRetiredPages(handle, 1)),
        "pending": pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle),
    }


def _throttle(handle: Any) -> dict[str, Any]:
    try:
        return {"reasons": pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)}
    except pynvml.NVMLError_FunctionNotFound:  # its name before driver 535
        return {"reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)}


def _pcie(handle: Any) -> dict[str, Any]:
    return {
        "width": pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        "max_width": pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle),
        "generation": pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        "max_generation": pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
    }


def _temperature(handle: Any) -> dict[str, Any]:
    """Degrees Celsius; and, from Hopper on, how many are left (the margin) and at which margins what happens."""
    threshold = "nvmlDeviceGetTemperatureThreshold"
    fields = _fields(handle, FIELD_MEMORY_CELSIUS, FIELD_SHUTDOWN_TLIMIT, FIELD_SLOWDOWN_TLIMIT, FIELD_MAX_TLIMIT)
    memory, shutdown, slowdown, highest = [None if code else value for code, value in fields]
    return {
        "gpu": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "memory": memory,
        "shutdown": _or_none(threshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN),
        "slowdown": _or_none(threshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        "gpu_max": _or_none(threshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_GPU_MAX),
        "memory_max": _or_none(threshold, handle, pynvml.NVML_TEMPERATURE_THRESHOLD_MEM_MAX),
        "margin": _or_none("nvmlDeviceGetMarginTemperature", handle),
        "shutdown_margin": shutdown,
        "slowdown_margin": slowdown,
        "gpu_max_margin": highest,
    }


def _nvlink(handle: Any) -> dict[str, Any]:
    """The state of each link; they end where NVML says so: there are fewer than NVML_NVLINK_MAX_LINKS."""
    active: list[bool] = []
    while len(active) < pynvml.NVML_NVLINK_MAX_LINKS:
        state = _or_none("nvmlDeviceGetNvLinkState", handle, len(active))
        if state is None:
            break
        active.append(bool(state))
    up = active.index(True) if any(active) else None
    return {
        "links": len(active),
        "inactive": [link for link, on in enumerate(active) if not on],
        **_speed(handle, up),
    }


def _speed(handle: Any, link: int | None) -> dict[str, int | None]:
    """Of one active link, which stands for all: MB/s in one direction, and its version (NVML_NVLINK_VERSION_*)."""
    if link is None:
        return {"mbps": None, "version": None}
    return {"mbps": _link_mbps(handle, link), "version": _or_none("nvmlDeviceGetNvLinkVersion", handle, link)}


class _Fabric(ctypes.Structure):
    """nvmlGpuFabricInfo_v3_t; version 2 lacks the last field, the first form of the call `version` and the last two.

    Not pynvml's own: those of nvidia-ml-py 12.560 have 80 bytes for the UUID, and so read every state as 0.
    """

    _fields_ = (
        ("version", ctypes.c_uint),
        ("cluster_uuid", ctypes.c_uint8 * 16),
        ("status", ctypes.c_uint),
        ("clique", ctypes.c_uint32),
        ("state", ctypes.c_uint),
        ("health_mask", ctypes.c_uint32),
        ("health_summary", ctypes.c_uint8),
    )


def _fabric(handle: Any) -> dict[str, Any]:
    """By the newest of the three forms of the call that the driver has; None where a form has no such value."""
    for version in (0x3000028, 0x2000024):
        info = _Fabric(version=version)
        if _or_none("nvmlDeviceGetGpuFabricInfoV", handle, byref(info)) is not None:
            summary = info.health_summary if version == 0x3000028 else None
            return {
                "state": info.state,
                "status": info.status,
                "health_mask": info.health_mask,
                "health_summary": summary,
            }
    info = _Fabric()
    pynvml.nvmlDeviceGetGpuFabricInfo(handle, byref(info, _Fabric.cluster_uuid.offset))
    return {"state": info.state, "status": info.status, "health_mask": None, "health_summary": None}


# ---- getters: what it could do at most, and what it does (probe bench) -----------------------------------------------

FIELD_NVLINK_SPEED_COMMON, FIELD_NVLINK_SPEED = 90, 164
"""MB/s of one link in one direction: of all links by drivers before 450, of the link that is the scope since."""


def _ceilings(handle: Any) -> dict[str, Any]:
    return {
        "memory_bus_bits": _or_none("nvmlDeviceGetMemoryBusWidth", handle),
        "memory_mhz": _or_none("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_MEM),
        "sm_mhz": _or_none("nvmlDeviceGetMaxClockInfo", handle, pynvml.NVML_CLOCK_SM),
        "watts": _watts(_or_none("nvmlDeviceGetEnforcedPowerLimit", handle)),
    }


def _links(handle: Any) -> dict[str, Any]:
    """The active NVLinks: how fast, of which version (NVML_NVLINK_VERSION_*), and the bus ids of what they lead to."""
    active, remotes = [], []
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = _or_none("nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            break
        if state:
            active.append(link)
            remote = _or_none("nvmlDeviceGetNvLinkRemotePciInfo", handle, link)
            remotes.append(remote.busId if remote is not None else "")
    c2c = _or_none("nvmlDeviceGetC2cModeInfoV", handle)
    return {
        "active": len(active),
        **_speed(handle, active[0] if active else None),
        "remotes": remotes,
        "c2c": bool(c2c.isC2cEnabled) if c2c is not None else False,
    }


def _link_mbps(handle: Any, link: int) -> int | None:
    for field in ((FIELD_NVLINK_SPEED, link), FIELD_NVLINK_SPEED_COMMON):
        ((code, value),) = _fields(handle, field)
        if not code and value:
            return value
    return None


def _reading(handle: Any) -> dict[str, Any]:
    clock = "nvmlDeviceGetClockInfo"
    try:
        reasons = _throttle(handle)["reasons"]
    except NOT_HERE:
        reasons = None
    return {
        "sm_mhz": _or_none(clock, handle, pynvml.NVML_CLOCK_SM),
        "memory_mhz": _or_none(clock, handle, pynvml.NVML_CLOCK_MEM),
        "celsius": _or_none("nvmlDeviceGetTemperature", handle, pynvml.NVML_TEMPERATURE_GPU),
        "watts": _watts(_or_none("nvmlDeviceGetPowerUsage", handle)),
        "throttle_reasons": reasons,
        "pcie_generation": _or_none("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "pcie_width": _or_none("nvmlDeviceGetCurrPcieLinkWidth", handle),
    }


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


WHO_USES_IT: dict[str, Callable[[Any], dict[str, Any]]] = {
    "memory": _memory,
    "processes": _processes,
    "utilization": _utilization,
    "compute_mode": _compute_mode,
}
"""What rungs 3 and 4 wait for, so it is asked first; MIG instances answer these too."""

GETTERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    **WHO_USES_IT,
    "mig": _mig,
    "recovery": _recovery,
    "persistence": _persistence,
    "ecc": _ecc,
    "sram": _sram,
    "pages": _pages,
    "throttle": _throttle,
    "fabric": _fabric,
    "nvlink": _nvlink,
    "remap": _remap,
    "pcie": _pcie,
    "temperature": _temperature,
    "ceilings": _ceilings,
    "links": _links,
}
"""Asked in this order: the slow ones last (1.4 to 1.8 ms each on an H100; the others less)."""
