"""Rung 3 without a GPU: what it expects, what it says of every failure, and that no wrong word passes."""

import ctypes
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.worker import cuda
from probe.worker.child import Stopwatch

TARGET = "gpu:GPU-5e1d0c3a-0000-0000-0000-000000000001"

seeds = st.integers(0, 2**32 - 1)


class Listener:
    """Stands in for a child: keeps its records and steps."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.steps: list[str] = []

    def say(
        self, key: str, target: str = "", code: int | None = None, text: str = "", elapsed_s: float = 0.0, **data: Any
    ) -> None:
        self.records.append({"key": key, "target": target, "code": code, "text": text, **data})

    def step(self, name: str, target: str = "") -> None:
        self.steps.append(name)

    def timed(self) -> Stopwatch:
        return Stopwatch()


def run(task: str = "test") -> Listener:
    child = Listener()
    cuda.main(child, {"task": task, "target": TARGET})
    return child


# What the kernel is to store


@settings(max_examples=20)
@given(seed=seeds)
def test_words_are_word_at_every_index(seed: int) -> None:
    """The fast way to all expected words gives the same as the formula, at a seed's every index."""
    count = 3 * cuda.LANES
    assert array("I", cuda.words(count, seed)).tolist() == [cuda.word(index, seed) for index in range(count)]


def test_the_formula() -> None:
    """``x = i * 2654435761 + seed; x ^= x >> 15; x *= 2246822519; x ^= x >> 13``, modulo 2^32."""
    for index, seed in ((0, 0), (1, 0), (cuda.WORDS - 1, 0xFFFFFFFF)):
        x = (index * 2654435761 + seed) % 2**32
        x ^= x >> 15
        x = x * 2246822519 % 2**32
        assert cuda.word(index, seed) == x ^ (x >> 13)
    assert cuda.word(0, 0) == 0


@settings(max_examples=5)
@given(seed=seeds)
def test_the_sentinel_is_no_answer(seed: int) -> None:
    """What memory holds before the test is at no index expected, so a word that was not written is always seen."""
    answers = array("I", cuda.words(cuda.WORDS, seed)).tolist()
    assert len(set(answers)) == cuda.WORDS
    assert cuda.word(cuda.WORDS, seed) not in answers


REGISTER = r"%\w+"
SPECIAL = {"%ctaid.x", "%ntid.x", "%tid.x"}
ARITHMETIC: dict[str, Callable[..., int]] = {
    "ld.param.u32": lambda a: a,
    "ld.param.u64": lambda a: a,
    "mov.u32": lambda a: a,
    "cvta.to.global.u64": lambda a: a,
    "mad.lo.u32": lambda a, b, c: (a * b + c) % 2**32,
    "mul.lo.u32": lambda a, b: a * b % 2**32,
    "mul.wide.u32": lambda a, b: a * b,
    "add.u64": lambda a, b: (a + b) % 2**64,
    "shr.u32": lambda a, b: a >> b,
    "xor.b32": lambda a, b: a ^ b,
    "setp.ge.u32": lambda a, b: int(a >= b),
}


def instructions() -> Iterator[tuple[str, str, list[str]]]:
    """The guard (or nothing), the operation and the operands of each instruction of the kernel, in order."""
    body = cuda.PTX.partition("{")[2].replace("end:", "")
    for guard, operation, operands in re.findall(r"^ +(?:@(%\w+) )?([a-z][\w.]+) ?(.*);$", body, re.MULTILINE):
        yield guard, operation, [operand.strip() for operand in operands.split(",")]


def execute(index: int, count: int, seed: int) -> dict[int, int]:
    """What the thread of `index` stores where, when out is at 2^40."""
    block, thread = divmod(index, cuda.BLOCK_THREADS)
    values = {"%ctaid.x": block, "%ntid.x": cuda.BLOCK_THREADS, "%tid.x": thread}
    values |= {"[out]": 1 << 40, "[n]": count, "[seed]": seed}
    stored: dict[int, int] = {}
    for guard, operation, (to, *names) in instructions():
        if guard and not values[guard]:
            continue
        if operation in {"bra", "ret"}:
            break
        given = [values[name] if name in values else int(name) for name in names]
        if operation == "st.global.u32":
            stored[values[to.strip("[]")]] = given[0]
        else:
            values[to] = ARITHMETIC[operation](*given)
    return stored


@given(index=st.integers(0, cuda.WORDS - 1), seed=seeds)
def test_the_ptx_computes_the_formula(index: int, seed: int) -> None:
    """Interpreted, the kernel stores `word(i, seed)` at out[i], and beyond n nothing."""
    assert execute(index, cuda.WORDS, seed) == {(1 << 40) + 4 * index: cuda.word(index, seed)}
    assert execute(index, index, seed) == {}


def test_the_ptx_is_for_every_driver() -> None:
    """The version is CUDA 9.0's and the target Maxwell: no driver of the last years is too old, no GPU too new."""
    assert re.findall(r"^\.(version|target) (\S+)$", cuda.PTX, re.MULTILINE) == [
        ("version", "6.0"),
        ("target", "sm_50"),
    ]
    assert cuda.PTX.isascii()
    declared = re.findall(REGISTER, "".join(re.findall(r"\.reg [^;]*", cuda.PTX)))
    assert set(declared) == set(re.findall(REGISTER + r"(?:\.x)?", cuda.PTX)) - SPECIAL


# What is said


def test_a_missing_library_is_a_record() -> None:
    """No libcuda in the image: said as such, with the loader's own words, and nothing else is tried."""
    name = "libcuda-that-is-not-there.so.1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "LIBRARY", name)
        child = run()
    (record,) = child.records
    assert (record["key"], record["target"], record["code"]) == ("init", TARGET, -1)
    assert record["text"].startswith(f"{name} cannot be loaded: {name}: cannot open shared object file")
    assert child.steps == ["dlopen"]


def test_a_call_that_the_driver_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old driver, here the C library in its place: the call that is missing is the finding."""
    monkeypatch.setattr(cuda, "LIBRARY", None)
    (record,) = run().records
    assert (record["key"], record["code"], record["call"]) == ("init", -2, "cuInit")
    assert record["text"] == "libcuda lacks cuInit"


def test_the_loaded_file_is_named() -> None:
    """An image may hold several libcuda: the path is that of the one loaded, links resolved."""
    file = cuda.file_of(ctypes.CDLL(None).getpid)
    assert Path(file).is_absolute()
    assert "libc" in Path(file).name


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("NVIDIA H100 80GB HBM3", "GPU-00010203-0405-0607-0809-0a0b0c0d0eff"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "MIG-00010203-0405-0607-0809-0a0b0c0d0eff"),
        ("NVIDIA MIGHTY", "GPU-00010203-0405-0607-0809-0a0b0c0d0eff"),
    ],
)
def test_a_uuid_reads_as_nvml_writes_it(name: str, uuid: str) -> None:
    """16 raw bytes and a name: MIG instances are told from whole GPUs by their name alone."""
    assert cuda.prefix(name) + cuda.dashed(bytes(range(15)) + b"\xff") == uuid


@given(index=st.integers(0, 4095), bit=st.integers(0, 31))
def test_one_wrong_bit_is_one_wrong_word(index: int, bit: int) -> None:
    """Any bit of any word, changed alone, is found with its place."""
    expected = cuda.words(4096, 7)
    got = array("I", expected)
    got[index] ^= 1 << bit
    assert cuda.compare(got.tobytes(), expected) == {
        "wrong_words": 1,
        "first_wrong_index": index,
        "first_wrong_bits_xor": f"{1 << bit:#x}",
    }
    assert cuda.compare(expected, expected) == {"wrong_words": 0}


# The phases, over a driver whose memory is a dict


class Memory(cuda.Driver):
    """A driver with H100s: memory, and a kernel that stores what the real one does."""

    FAILS: ClassVar[dict[str, int]] = {}
    FORGETS: ClassVar[set[str]] = set()
    """These calls say that they succeeded, and do nothing."""
    BITS: ClassVar[dict[int, int]] = {}
    """Bits that the kernel gets wrong, by index."""
    NAMES: ClassVar[list[str]] = ["NVIDIA H100 80GB HBM3"]

    def __init__(self, announce: Callable[[str], None]) -> None:
        super().__init__(announce)
        self.memory: dict[int, bytes] = {}

    def load(self) -> str:
        return "/usr/lib/libcuda.so.580.159.04"

    def call(self, name: str, *arguments: Any) -> None:
        self._announce(name)
        assert len(arguments) == len(cuda.PARAMETERS[name])
        if name in self.FAILS:
            raise cuda.Failure(name, self.FAILS[name], "CUDA_ERROR_OF_THE_TEST")
        if name not in self.FORGETS and hasattr(self, name):
            getattr(self, name)(*arguments)

    def cuDriverGetVersion(self, version: Any) -> None:  # noqa: N802
        version._obj.value = 13000

    def cuDeviceGetCount(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.NAMES)

    def cuDeviceGet(self, device: Any, ordinal: int) -> None:  # noqa: N802
        device._obj.value = ordinal

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> None:  # noqa: N802
        name.value = self.NAMES[device].encode()

    def cuDeviceGetUuid_v2(self, raw: Any, device: int) -> None:  # noqa: N802
        ctypes.memmove(raw, bytes(15) + bytes([device]), 16)

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> None:  # noqa: N802
        free._obj.value, total._obj.value = 80 << 30, 81 << 30

    def cuMemAlloc_v2(self, pointer: Any, size: int) -> None:  # noqa: N802
        pointer._obj.value = 4096 * (1 + len(self.memory))
        self.memory[pointer._obj.value] = bytes(size)

    def cuMemsetD32_v2(self, pointer: Any, word: int, count: int) -> None:  # noqa: N802
        self.memory[pointer.value] = word.to_bytes(4, "little") * count

    def cuMemcpyHtoD_v2(self, pointer: Any, data: bytes, size: int) -> None:  # noqa: N802
        self.memory[pointer.value] = data[:size]

    def cuMemcpyDtoH_v2(self, host: Any, pointer: Any, size: int) -> None:  # noqa: N802
        ctypes.memmove(host, self.memory[pointer.value], size)

    def cuLaunchKernel(self, function: Any, *arguments: Any) -> None:  # noqa: N802
        blocks, _, _, threads, *_ = arguments
        addresses = arguments[8]
        out = ctypes.c_uint64.from_address(addresses[0]).value
        count, seed = (ctypes.c_uint32.from_address(addresses[i]).value for i in (1, 2))
        assert blocks * threads >= count
        words = array("I", cuda.words(count, seed))
        for index, bits in self.BITS.items():
            words[index] ^= bits
        self.memory[out] = words.tobytes()


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program changes in the environment is undone."""
    monkeypatch.setenv("CUDA_CACHE_DISABLE", "0")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    """The driver that `run` meets in this test."""
    monkeypatch.setattr(cuda, "Driver", Memory)
    return Memory


def test_a_healthy_gpu(memory: type[Memory]) -> None:
    """One record for each phase; the last step before a hang names the call that hung."""
    child = run()
    init, context, kernel = child.records
    head = {"target": TARGET, "code": 0, "text": "CUDA_SUCCESS"}
    assert init == {"key": "init", **head, "library": "/usr/lib/libcuda.so.580.159.04", "driver_cuda": 13000}
    name = "NVIDIA H100 80GB HBM3"
    memory_bytes = {"free_bytes": 80 << 30, "total_bytes": 81 << 30}
    assert context == {"key": "context", **head, "device_count": 1, "name": name, "capability": "9.0", **memory_bytes}
    seed = kernel.pop("seed")
    assert kernel == {"key": "kernel", **head, "words": 524288, "wrong_words": 0, "copy_wrong_words": 0}
    assert 0 <= seed < 2**32
    assert child.steps[:2] == ["cuDriverGetVersion", "cuInit"]
    assert child.steps[-3:] == ["cuLaunchKernel", "cuCtxSynchronize", "cuMemcpyDtoH_v2"]


def test_the_list(memory: type[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each GPU's UUID with its prefix and as the driver gave it, its name and its capability, in one order."""
    monkeypatch.setattr(memory, "NAMES", ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"])
    devices = run("list").records[1]
    zeros = "00000000-0000-0000-0000-0000000000"
    assert devices["uuids"] == [f"GPU-{zeros}00", f"MIG-{zeros}01"]
    assert devices["raw_uuids"] == [f"{zeros}00", f"{zeros}01"]
    assert devices["names"] == memory.NAMES
    assert devices["capabilities"] == ["9.0", "9.0"]


TEST_CALLS = [name for name in cuda.PARAMETERS if name not in {"cuGetErrorName", "cuDeviceGetUuid_v2"}]


@pytest.mark.parametrize("call", TEST_CALLS)
def test_any_call_that_fails_ends_the_test(memory: type[Memory], monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Its phase's record carries the code, its name and the call, and is the last; it claims no verified word."""
    monkeypatch.setattr(memory, "FAILS", {call: 2})
    child = run()
    *before, last = child.records
    assert (last["code"], last["text"], last["call"]) == (2, "CUDA_ERROR_OF_THE_TEST", call)
    assert [record["key"] for record in child.records] == ["init", "context", "kernel"][: len(before) + 1]
    assert all(record["code"] == 0 for record in before)
    assert "wrong_words" not in last
    assert child.steps[-1] == call


def test_what_was_known_before_a_failure_is_said(memory: type[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    """With cuInit failing, which library and which CUDA version it was is part of the evidence."""
    monkeypatch.setattr(memory, "FAILS", {"cuInit": 802})
    (record,) = run().records
    assert (record["code"], record["driver_cuda"]) == (802, 13000)
    assert record["library"].endswith("libcuda.so.580.159.04")


@pytest.mark.parametrize("call", ["cuLaunchKernel", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2"])
def test_a_call_that_does_nothing_is_seen(memory: type[Memory], monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A driver that says yes and does nothing gets every word wrong that the call was to deliver."""
    monkeypatch.setattr(memory, "FORGETS", {call})
    kernel = run().records[-1]
    assert kernel["code"] == 0
    wrong = {name: kernel[name] for name in ("wrong_words", "copy_wrong_words")}
    every = cuda.WORDS
    expected = {
        "cuLaunchKernel": {"wrong_words": every, "copy_wrong_words": 0},
        "cuMemcpyHtoD_v2": {"wrong_words": 0, "copy_wrong_words": every},
        "cuMemcpyDtoH_v2": {"wrong_words": every, "copy_wrong_words": every},
    }[call]
    for name, count in expected.items():  # a host buffer of zeros may hold one right word: the formula's only zero
        assert count - 1 <= wrong[name] <= count


def test_a_wrong_word_is_told_with_its_place(memory: type[Memory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two words wrong, in the first of them two bits."""
    monkeypatch.setattr(memory, "BITS", {70000: 1 << 31 | 1, 90000: 4})
    kernel = run().records[-1]
    assert (kernel["code"], kernel["wrong_words"], kernel["copy_wrong_words"]) == (0, 2, 0)
    assert (kernel["first_wrong_index"], kernel["first_wrong_bits_xor"]) == (70000, "0x80000001")


def test_nothing_grows_under_the_users_home(memory: type[Memory]) -> None:
    """The driver's cache of compiled PTX is off before the driver starts."""
    run()
    assert os.environ["CUDA_CACHE_DISABLE"] == "1"


def test_it_runs_under_any_interpreter() -> None:
    """The standard library alone, and no name of it that Python 3.9 lacks is imported."""
    imported = set(re.findall(r"^(?:import|from) (\w+)", Path(cuda.__file__).read_text(), re.MULTILINE))
    assert imported <= sys.stdlib_module_names


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["list", "test"])
def test_a_real_gpu(task: str) -> None:
    """On a healthy machine every phase passes and every word is right."""
    records = run(task).records
    assert [record["text"] for record in records] == ["CUDA_SUCCESS"] * len(records)
    if task == "test":
        assert (records[-1]["wrong_words"], records[-1]["copy_wrong_words"]) == (0, 0)
