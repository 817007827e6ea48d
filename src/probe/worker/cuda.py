"""Rung 3: does the CUDA driver work? By ctypes on libcuda, so its answer waits for no framework.

::

    list:  cuInit -> "init" -> UUID, name, capability of each GPU -> "devices"
    test:  cuInit -> "init" -> context -> "context" -> copy and PTX kernel, every word verified -> "kernel"

One record per phase. Its code is 0, or what the driver call named in ``call`` returned: then it is the last record.
Negative codes are ours, where there was no driver to ask: `NO_LIBRARY`, `NO_SYMBOL`. A wrong answer is no error of the
driver's: its code is 0, and ``wrong_words`` or ``copy_wrong_words`` says how many.

In a test ``CUDA_VISIBLE_DEVICES`` leaves one GPU visible. Nothing is released: the process leaves by `os._exit`, and
the kernel takes back what it held. Standard library only, Python >= 3.9.

Over 300 lines because a third are tables: the driver's prototypes, and a kernel beside the same words made on the host.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

LIBRARY = "libcuda.so.1"
SUCCESS = 0
NO_LIBRARY = -1
NO_SYMBOL = -2
"""The driver is older than a call we make."""

COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
UUID_BYTES = 16
NAME_BYTES = 256

PARAMETERS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint32,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetUuid_v2": (POINTER(c_char * UUID_BYTES), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemsetD32_v2": (c_uint64, c_uint32, c_size_t),
    "cuMemcpyHtoD_v2": (c_uint64, c_char_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *(c_uint32,) * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "cuCtxSynchronize": (),
}
"""Every driver call made here; each returns a CUresult."""

WORDS = 1 << 19
"""2 MiB: 2048 blocks, ten for each of the 192 SMs of the largest chip today; expecting it costs a host core 11 ms."""
BLOCK_THREADS = 256
WORD_BYTES = 4

LANES = 4096
"""Words verified at once: 32 KiB; with more, the integers outgrow the first-level cache."""
ONES = int.from_bytes(b"\1\0\0\0\0\0\0\0" * LANES, "little")
LOW = ONES * 0xFFFFFFFF

FACTORS = (2654435761, 2246822519)
PRODUCTS = int.from_bytes(array("Q", (i * FACTORS[0] & 0xFFFFFFFF for i in range(LANES))), "little")
PTX = f"""
.version 6.0
.target sm_50
.address_size 64

.visible .entry fill(.param .u64 out, .param .u32 n, .param .u32 seed)
{{
    .reg .pred %beyond;
    .reg .b32 %i, %n, %seed, %block, %threads, %thread, %x, %y;
    .reg .b64 %out, %offset;

    ld.param.u64 %out, [out];
    ld.param.u32 %n, [n];
    ld.param.u32 %seed, [seed];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %i, %block, %threads, %thread;
    setp.ge.u32 %beyond, %i, %n;
    @%beyond bra end;

    mad.lo.u32 %x, %i, {FACTORS[0]}, %seed;
    shr.u32 %y, %x, 15;
    xor.b32 %x, %x, %y;
    mul.lo.u32 %x, %x, {FACTORS[1]};
    shr.u32 %y, %x, 13;
    xor.b32 %x, %x, %y;

    cvta.to.global.u64 %out, %out;
    mul.wide.u32 %offset, %i, {WORD_BYTES};
    add.u64 %out, %out, %offset;
    st.global.u32 [%out], %x;
end:
    ret;
}}
"""
"""Stores `word(i, seed)` in out[i] for every i < n.

A driver compiles PTX of any older target and any older version, so both are the oldest that serve: sm_50 (Maxwell) is
the oldest GPU of the drivers we meet (470 to 580), and PTX 6.0 is that of CUDA 9.0.
"""


class Failure(Exception):
    """A driver call failed: its name, its CUresult or a code of ours, and what that means."""

    def __init__(self, call: str, code: int, text: str) -> None:
        self.call = call
        self.code = code
        self.text = text
        super().__init__(f"{call}: {text}")


class Driver:
    """libcuda: each call is announced, typed and checked."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._library: ctypes.CDLL | None = None

    def load(self) -> str:
        """The file that was loaded: of the several libcuda that an image may hold, which one is it?"""
        self._announce("dlopen")
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Failure("dlopen", NO_LIBRARY, f"{LIBRARY} cannot be loaded: {error}") from error
        return file_of(self._symbol("cuInit"))

    def call(self, name: str, *arguments: Any) -> None:
        function = self._symbol(name)
        self._announce(name)
        code = function(*arguments)
        if code != SUCCESS:
            raise Failure(name, code, self._error_name(code))

    def integer(self, name: str, *arguments: Any) -> int:
        """What a call stores in the int that is its first parameter."""
        value = c_int()
        self.call(name, byref(value), *arguments)
        return value.value

    def _symbol(self, name: str) -> Any:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise Failure(name, NO_SYMBOL, f"libcuda lacks {name}") from error
        function.argtypes = PARAMETERS[name]
        function.restype = c_int
        return function

    def _error_name(self, code: int) -> str:
        name = c_char_p()
        self._symbol("cuGetErrorName")(code, byref(name))  # leaves it NULL for a code that this driver does not know
        return name.value.decode() if name.value else f"CUDA error {code}"


def main(child: Any, job: dict[str, Any]) -> None:
    """List the GPUs, or test the one that is visible; `job` is ``{"task": "list" or "test", "target"}``."""
    os.environ["CUDA_CACHE_DISABLE"] = "1"  # read when the driver starts: nothing is to grow under the user's home
    target = job["target"]
    driver = Driver(lambda call: child.step(call, target))
    for key in TASKS[job["task"]]:
        elapsed = child.timed()
        data: dict[str, Any] = {}
        try:
            PHASES[key](driver, data)
        except Failure as failure:
            child.say(key, target, failure.code, failure.text, elapsed(), call=failure.call, **data)
            return
        child.say(key, target, SUCCESS, "CUDA_SUCCESS", elapsed(), **data)


def initialise(driver: Driver, data: dict[str, Any]) -> None:
    data["library"] = driver.load()
    data["driver_cuda"] = driver.integer("cuDriverGetVersion")
    driver.call("cuInit", 0)


def devices(driver: Driver, data: dict[str, Any]) -> None:
    """The driver gives a UUID without its prefix, and under MIG an instance's: `raw_uuids` is what it said."""
    data.update(uuids=[], raw_uuids=[], names=[], capabilities=[])
    for ordinal in range(driver.integer("cuDeviceGetCount")):
        device = driver.integer("cuDeviceGet", ordinal)
        raw = (c_char * UUID_BYTES)()
        driver.call("cuDeviceGetUuid_v2", byref(raw), device)
        name = name_of(driver, device)
        data["uuids"].append(prefix(name) + dashed(raw.raw))
        data["raw_uuids"].append(dashed(raw.raw))
        data["names"].append(name)
        data["capabilities"].append(capability_of(driver, device))


def context(driver: Driver, data: dict[str, Any]) -> None:
    data["device_count"] = driver.integer("cuDeviceGetCount")
    device = driver.integer("cuDeviceGet", 0)
    data["name"] = name_of(driver, device)
    data["capability"] = capability_of(driver, device)
    handle = c_void_p()
    driver.call("cuDevicePrimaryCtxRetain", byref(handle), device)
    driver.call("cuCtxSetCurrent", handle)
    free, total = c_size_t(), c_size_t()
    driver.call("cuMemGetInfo_v2", byref(free), byref(total))
    data.update(free_bytes=free.value, total_bytes=total.value)


def kernel(driver: Driver, data: dict[str, Any]) -> None:
    """Copy the expected words there and back, let a kernel compute them, and compare both with `==`.

    Each answer has memory of its own on both sides, filled with what it must not be, and the seed is fresh: neither a
    call that did nothing nor what an earlier one left behind can pass.
    """
    seed = int.from_bytes(os.urandom(WORD_BYTES), "little")
    expected = words(WORDS, seed)
    data.update(words=WORDS, seed=seed)
    copied, computed = allocate(driver, word(WORDS, seed)), allocate(driver, word(WORDS, seed))
    driver.call("cuMemcpyHtoD_v2", copied, expected, len(expected))
    data.update({f"copy_{key}": value for key, value in compare(read_back(driver, copied), expected).items()})
    launch(driver, computed, seed)
    data.update(compare(read_back(driver, computed), expected))


def allocate(driver: Driver, sentinel: int) -> c_uint64:
    pointer = c_uint64()
    driver.call("cuMemAlloc_v2", byref(pointer), WORDS * WORD_BYTES)
    driver.call("cuMemsetD32_v2", pointer, sentinel, WORDS)
    return pointer


def launch(driver: Driver, out: c_uint64, seed: int) -> None:
    """Compile the kernel, run it and wait for its end, where its faults are told."""
    module, function = c_void_p(), c_void_p()
    driver.call("cuModuleLoadData", byref(module), PTX.encode())
    driver.call("cuModuleGetFunction", byref(function), module, b"fill")
    arguments = (out, c_uint32(WORDS), c_uint32(seed))
    addresses = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
    driver.call("cuLaunchKernel", function, WORDS // BLOCK_THREADS, 1, 1, BLOCK_THREADS, 1, 1, 0, None, addresses, None)
    driver.call("cuCtxSynchronize")


def read_back(driver: Driver, pointer: c_uint64) -> bytes:
    host = (c_char * (WORDS * WORD_BYTES))()
    driver.call("cuMemcpyDtoH_v2", host, pointer, len(host))
    return host.raw


def name_of(driver: Driver, device: int) -> str:
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.call("cuDeviceGetName", name, NAME_BYTES, device)
    return name.value.decode(errors="replace")


def capability_of(driver: Driver, device: int) -> str:
    major = driver.integer("cuDeviceGetAttribute", COMPUTE_CAPABILITY_MAJOR, device)
    minor = driver.integer("cuDeviceGetAttribute", COMPUTE_CAPABILITY_MINOR, device)
    return f"{major}.{minor}"


PHASES: dict[str, Callable[[Driver, dict[str, Any]], None]] = {
    "init": initialise,
    "devices": devices,
    "context": context,
    "kernel": kernel,
}
TASKS = {"list": ("init", "devices"), "test": ("init", "context", "kernel")}


def dashed(raw: bytes) -> str:
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def prefix(name: str) -> str:
    """CUDA names an instance ``NVIDIA A100-SXM4-40GB MIG 1g.5gb``; nothing else tells it from a whole GPU."""
    return "MIG-" if "MIG" in name.split() else "GPU-"


def word(index: int, seed: int) -> int:
    """What the kernel stores at `index`: a bijection of 32-bit words, so `word(n, seed)` is at no index below n."""
    x = (index * FACTORS[0] + seed) & 0xFFFFFFFF
    x ^= x >> 15
    x = x * FACTORS[1] & 0xFFFFFFFF
    return x ^ x >> 13


def words(count: int, seed: int) -> bytes:
    """`word` of every index below `count`, a multiple of `LANES`; 12 times as fast as one by one.

    Each index has a 64-bit lane of a long integer: a product of two 32-bit words does not leave it.
    """
    return b"".join(block(start, seed) for start in range(0, count, LANES))


def block(start: int, seed: int) -> bytes:
    x = PRODUCTS + ONES * ((start * FACTORS[0] + seed) & 0xFFFFFFFF) & LOW
    x ^= x >> 15 & LOW
    x = x * FACTORS[1] & LOW
    x ^= x >> 13 & LOW
    return memoryview(x.to_bytes(LANES * 8, "little")).cast("I")[::2].tobytes()


def compare(got: bytes, expected: bytes) -> dict[str, Any]:
    """How many words differ, and where and in which bits the first of them does."""
    if got == expected:
        return {"wrong_words": 0}
    wrong = [(i, x ^ y) for i, (x, y) in enumerate(zip(array("I", got), array("I", expected))) if x != y]
    index, bits = wrong[0]
    return {"wrong_words": len(wrong), "first_wrong_index": index, "first_wrong_bits_xor": f"{bits:#x}"}


class DlInfo(ctypes.Structure):
    _fields_ = (("file", c_char_p), ("base", c_void_p), ("symbol", c_char_p), ("address", c_void_p))


def file_of(function: Any) -> str:
    """The file that holds a loaded function, by dladdr; empty where the loader does not know."""
    info = DlInfo()
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = (c_void_p, POINTER(DlInfo))
    found = dladdr(ctypes.cast(function, c_void_p), byref(info))
    return os.path.realpath(os.fsdecode(info.file)) if found and info.file else ""
