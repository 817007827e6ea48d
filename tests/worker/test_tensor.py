"""The tensor test finds every wrong bit, and calls nothing wrong that is right."""

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.worker import tensor
from probe.worker.child import Stopwatch

SEED = 20240817
FORMATS = {form.name: form for form in tensor.FORMATS}
TARGET = "cpu:0"

seeds = st.integers(0, 2**32 - 1)
places = st.integers(0, tensor.SIZE - 1)


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

    @property
    def keys(self) -> list[str]:
        return [record["key"] for record in self.records]


def run(device: str = "cpu", seed: int = SEED) -> Listener:
    child = Listener()
    tensor.main(child, {"target": TARGET, "device": device, "seed": seed})
    return child


def products(seed: int = SEED) -> list[tuple[tensor.Format, tensor.Product]]:
    inputs = tensor.Inputs(seed)
    return [(form, product) for form in tensor.FORMATS for product in (inputs.dense(form), inputs.routing(form))]


def values(words: Any, form: tensor.Format) -> Any:
    return words.view(form.dtype).double()


def flipped(words: Any, row: int, column: int, bit: int) -> Any:
    """A copy with one bit of one word changed."""
    result = words.clone()
    mask = 1 << bit
    if bit == torch.iinfo(words.dtype).bits - 1:
        mask -= 1 << (bit + 1)  # the sign bit of a signed word
    result[row, column] ^= mask
    return result


def spoiled(product: tensor.Product, matrix: int, row: int, column: int, bit: int) -> list[Any]:
    """The three matrices of `product` as a device would hold them with one bit wrong, `row` and `column` as held."""
    seen = [product.left, product.right_transposed, product.expected]
    seen[matrix] = flipped(seen[matrix], row, column, bit)
    return seen


def test_every_dtype_is_exact_on_the_cpu() -> None:
    """A healthy CPU: one record per dtype, nothing wrong in 131,072 outputs and 262,144 inputs, then the end."""
    child = run()
    assert child.keys == ["tensor:fp32", "tensor:bf16", "tensor:fp16", "done"]
    for dtype, record in zip(FORMATS, child.records, strict=False):
        assert record == {
            "key": f"tensor:{dtype}",
            "target": TARGET,
            "code": 0,
            "text": "",
            "dtype": dtype,
            "words": 131072,
            "wrong_words": 0,
            "wrong_dense_words": 0,
            "input_words": 262144,
            "wrong_inputs": 0,
        }
    assert child.records[3]["seed"] == SEED
    assert child.steps == ["fp32 dense", "fp32 routing", "bf16 dense", "bf16 routing", "fp16 dense", "fp16 routing"]


@settings(max_examples=10)
@given(seed=seeds)
def test_every_seed_is_exact(seed: int) -> None:
    """No seed makes a healthy CPU look sick: the claim of exactness does not rest on lucky numbers."""
    done = run(seed=seed).records[-1]
    assert (done["key"], done["wrong_words"], done["wrong_inputs"]) == ("done", 0, 0)


def test_each_run_draws_afresh() -> None:
    """Without a seed in the job two runs differ, so an answer left in memory cannot pass for a new one."""
    seen = set()
    for _ in range(2):
        child = Listener()
        tensor.main(child, {"target": TARGET, "device": "cpu"})
        seen.add(child.records[-1]["seed"])
    assert len(seen) == 2


@settings(max_examples=20)
@given(seed=seeds)
def test_dense_sums_are_exact_in_any_order(seed: int) -> None:
    """Sums of ``|a||b|`` stay within the integers that each dtype holds, and entries within TF32's 11 bits."""
    inputs = tensor.Inputs(seed)
    for form in tensor.FORMATS:
        product = inputs.dense(form)
        left, right = values(product.left, form), values(product.right_transposed, form).t()
        assert left.unique().tolist() == right.unique().tolist() == [-1, 0, 1]
        assert float((left.abs() @ right.abs()).max()) <= 2 ** (form.mantissa_bits + 1)
    assert {form.name: form.mantissa_bits + 1 for form in tensor.FORMATS} == {"fp32": 24, "bf16": 8, "fp16": 11}


@settings(max_examples=20)
@given(seed=seeds)
def test_what_is_expected_is_the_product(seed: int) -> None:
    """The references, made of integers alone, equal the product in fp64, which is exact here."""
    for form, product in products(seed):
        exact = values(product.left, form) @ values(product.right_transposed, form).t()
        assert torch.equal(values(product.expected, form), exact)


def test_the_dense_trits_are_even() -> None:
    """Zeros, which hide a fault, are no more than a third of the entries."""
    for matrix in tensor.Inputs(SEED).dense(FORMATS["fp32"])[1:3]:
        for value in (-1, 0, 1):
            share = float((values(matrix, FORMATS["fp32"]) == value).double().mean())
            assert share == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize("form", tensor.FORMATS, ids=lambda form: form.name)
def test_routing_moves_every_bit(form: tensor.Format) -> None:
    """Each mantissa bit and the sign are 0 in some words and 1 in others, in the product too; every word is normal."""
    product = tensor.Inputs(SEED).routing(form)
    for words in (product.left, product.expected):
        for bit in (*range(form.mantissa_bits), form.sign_bit):
            ones = int(torch.count_nonzero(words >> bit & 1))
            assert ones / tensor.WORDS == pytest.approx(0.5, abs=0.1)
        magnitudes = values(words, form).abs()
        assert float(magnitudes.min()) >= 2.0**-7 > torch.finfo(form.dtype).tiny
        assert float(magnitudes.max()) < 2.0**8 < torch.finfo(form.dtype).max


@given(seed=seeds)
def test_routing_takes_every_column_once(seed: int) -> None:
    """B is a signed permutation times powers of two: one such entry in each row and each column."""
    form = FORMATS["bf16"]
    matrix = values(tensor.Inputs(seed).routing(form).right_transposed, form)
    assert (matrix != 0).sum(0).tolist() == (matrix != 0).sum(1).tolist() == [1] * tensor.SIZE
    entries = matrix[matrix != 0]
    assert set(entries.abs().log2().tolist()) <= set(range(-3, 5))
    assert {1.0, -1.0} == set(entries.sign().tolist())


@pytest.mark.parametrize("matrix", range(3), ids=["A", "B", "A @ B"])
@pytest.mark.parametrize("form", tensor.FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("kind", ["dense", "routing"])
def test_each_bit_of_a_word_counts(kind: str, form: tensor.Format, matrix: int) -> None:
    """Any one bit of a word, changed alone, is one wrong word, found at its place: the sign of a zero too."""
    product: tensor.Product = getattr(tensor.Inputs(SEED), kind)(form)
    for row, column in ((0, 0), (17, 200), (255, 255)):
        for bit in range(form.sign_bit + 1):
            comparisons = tensor.compare(product, spoiled(product, matrix, row, column, bit))
            place = (column, row) if matrix == 1 else (row, column)  # B is held transposed
            assert [comparison.wrong for comparison in comparisons] == [int(i == matrix) for i in range(3)]
            assert (*comparisons[matrix][3:5], comparisons[matrix].bits) == (*place, 1 << bit)


DRAWN = products()


@settings(max_examples=300)
@given(which=st.integers(0, len(DRAWN) - 1), matrix=st.integers(0, 2), row=places, column=places, data=st.data())
def test_no_word_is_left_out(which: int, matrix: int, row: int, column: int, data: st.DataObject) -> None:
    """A bit changed anywhere, in any matrix of any product, is one wrong word."""
    form, product = DRAWN[which]
    bit = data.draw(st.integers(0, form.sign_bit))
    assert sum(c.wrong for c in tensor.compare(product, spoiled(product, matrix, row, column, bit))) == 1


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_wrong_product_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """A device that gets one bit of one output wrong is told by dtype, matrix, row, column and bit."""
    form = FORMATS[dtype]

    def multiply(left: Any, right: Any) -> Any:
        words = torch.mm(left, right).view({2: torch.int16, 4: torch.int32}[left.element_size()])
        return (flipped(words, 3, 141, 5) if left.dtype == form.dtype else words).view(left.dtype)

    monkeypatch.setattr(tensor, "multiply", multiply)
    child = run()
    (record,) = [record for record in child.records[:3] if record["wrong_words"]]
    assert (record["key"], record["dtype"], record["code"]) == (f"tensor:{dtype}", dtype, 0)
    assert (record["wrong_words"], record["wrong_dense_words"], record["wrong_inputs"]) == (2, 1, 0)
    assert record["first_wrong"] == "dense A @ B"
    assert (record["first_wrong_row"], record["first_wrong_column"]) == (3, 141)
    assert record["first_wrong_bits_xor"] == "0x20"
    assert child.records[-1]["wrong_words"] == 2


def test_an_input_bit_that_the_product_rounds_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bit of a zero of B, wrong on the device, is in no product: reading the inputs back finds it."""

    def multiply(left: Any, right: Any) -> Any:
        right.view(torch.int32 if right.element_size() == 4 else torch.int16)[7, 9] ^= 1
        return torch.mm(left, right)

    monkeypatch.setattr(tensor, "multiply", multiply)
    record = run().records[0]
    assert (record["wrong_words"], record["wrong_inputs"]) == (0, 2)
    assert (record["first_wrong"], record["first_wrong_row"], record["first_wrong_column"]) == ("dense B", 7, 9)
    assert record["first_wrong_bits_xor"] == "0x1"


def test_rounding_the_inputs_is_seen_in_the_routing_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fp32 product that keeps TF32's 10 mantissa bits is right when dense and wrong in nearly all routed words."""

    def multiply(left: Any, right: Any) -> Any:
        if left.dtype != torch.float32:
            return torch.mm(left, right)
        cut = -1 << 13
        return torch.mm(
            (left.view(torch.int32) & cut).view(left.dtype), (right.t().view(torch.int32) & cut).view(left.dtype).t()
        )

    monkeypatch.setattr(tensor, "multiply", multiply)
    record = run().records[0]
    assert (record["wrong_dense_words"], record["wrong_inputs"]) == (0, 0)
    assert record["wrong_words"] > 0.99 * tensor.WORDS


PRECISION = "fp32_precision" if hasattr(torch.backends.cuda.matmul, "fp32_precision") else "allow_tf32"
"""As this torch calls it; the tests below run with either."""


@pytest.mark.parametrize("before", ["tf32", "ieee"] if PRECISION == "fp32_precision" else [True, False])
def test_tf32_is_off_inside_and_restored(before: Any) -> None:
    """Under any setting of the caller's the products run without TF32, and the setting is there again afterwards."""
    flags = torch.backends.cuda.matmul
    default = getattr(flags, PRECISION)
    try:
        setattr(flags, PRECISION, before)
        with tensor.tf32_off():
            assert getattr(flags, PRECISION) in {"ieee", False}
        assert getattr(flags, PRECISION) == before
        with pytest.raises(ZeroDivisionError), tensor.tf32_off():
            raise ZeroDivisionError
        assert getattr(flags, PRECISION) == before
    finally:
        setattr(flags, PRECISION, default)


def test_only_routing_needs_tf32_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense product is exact under TF32 too, so it runs as the job's own would."""
    flags = SimpleNamespace(fp32_precision="tf32")
    seen = []

    def multiply(left: Any, right: Any) -> Any:
        seen.append(flags.fp32_precision)
        return torch.mm(left, right)

    monkeypatch.setattr(torch.backends.cuda, "matmul", flags)
    monkeypatch.setattr(tensor, "multiply", multiply)
    assert run().keys[-1] == "done"
    assert seen == ["tf32", "ieee"] * 3


@pytest.mark.parametrize("flags", [{"allow_tf32": True}, {"allow_tf32": True, "fp32_precision": "tf32"}])
def test_the_new_flag_goes_before_the_old(monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]) -> None:
    """`allow_tf32` is all that torch before 2.9 has; where both are, it is not touched, since reading it may raise."""
    stand_in = SimpleNamespace(**flags)
    monkeypatch.setattr(torch.backends.cuda, "matmul", stand_in)
    with tensor.tf32_off():
        assert (stand_in.allow_tf32, getattr(stand_in, "fp32_precision", None)) in {(False, None), (True, "ieee")}
    assert vars(stand_in) == flags


def test_the_environment_cannot_make_the_libraries_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes cuBLAS and oneDNN round fp32 behind torch's back is out of the environment before their first use."""
    for name in tensor.ROUNDING_VARIABLES:
        monkeypatch.setenv(name, "1")
    run()
    assert not set(tensor.ROUNDING_VARIABLES) & set(os.environ)


class Numbered(RuntimeError):
    """As torch.AcceleratorError, which has no constructor to call."""

    error_code = 719


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (Numbered("CUDA error: unspecified launch failure\nmore"), 719, "CUDA error: unspecified launch failure"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), 2, "CUDA out of memory. Tried to"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel"), 2, "CUDA error: out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            2,
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
        (
            RuntimeError("Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"),
            802,
            "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        ),
        (RuntimeError("No CUDA GPUs are available"), -1, "No CUDA GPUs are available"),
        (RuntimeError(""), -1, ""),
    ],
)
def test_an_error_of_the_device_is_a_record_and_the_last(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, code: int, text: str
) -> None:
    """What torch raises is said with its number, its first line, its dtype and its call; nothing follows it."""

    def multiply(left: Any, right: Any) -> Any:
        if left.dtype == torch.bfloat16:
            raise error
        return torch.mm(left, right)

    monkeypatch.setattr(tensor, "multiply", multiply)
    child = run()
    assert child.keys == ["tensor:fp32", "tensor:bf16"]
    assert child.records[1] == {
        "key": "tensor:bf16",
        "target": TARGET,
        "code": code,
        "text": text,
        "dtype": "bf16",
        "call": "bf16 dense",
    }


def test_a_mistake_of_probes_own_is_no_error_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception outside the device's calls goes to the bootstrap, which reports it as probe's."""

    def broken(self: tensor.Inputs, form: tensor.Format) -> tensor.Product:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(tensor.Inputs, "routing", broken)
    with pytest.raises(RuntimeError, match="a mistake"):
        run()


def test_a_torch_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU asked of a CPU build: neither the arch nor the first dtype is known, and both say why."""
    monkeypatch.setattr(torch.version, "cuda", None)
    child = run("cuda")
    assert child.steps == ["torch cuInit"]
    assert child.keys == ["arch", "tensor:fp32"]
    for record in child.records:
        assert (record["code"], record["call"]) == (-1, "torch cuInit")
        assert record["text"] == "torch was built without CUDA"


def test_a_rocm_build_says_rocm_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not supported yet, so nothing is claimed; on a CPU target it computes like any other torch."""
    monkeypatch.setattr(torch.version, "hip", "6.2.41133")
    child = run("cuda")
    assert (child.keys, child.steps, child.records[0]["text"]) == (["rocm"], [], "6.2.41133")
    assert run("cpu").keys[-1] == "done"


def test_the_gpu_and_what_torch_was_built_for_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arch record is out before a context exists, so a GPU that torch has no kernels for is named by its arch."""
    child = Listener()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda ordinal: properties)
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_80 sm_90 compute_120", raising=False)

    def empty(*_: Any, **__: Any) -> Any:
        raise Numbered("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "empty", empty)
    tensor.main(child, {"target": "gpu:GPU-1", "device": "cuda", "seed": SEED})
    assert child.steps == ["torch cuInit", "context"]
    arch, failure = child.records
    assert arch == {
        "key": "arch",
        "target": "gpu:GPU-1",
        "code": 0,
        "text": "",
        "name": "NVIDIA H100 80GB HBM3",
        "capability": "9.0",
        "arch_list": ["sm_80", "sm_90", "compute_120"],
        "cuda": "13.0",
    }
    assert (failure["key"], failure["code"], failure["call"]) == ("tensor:fp32", 719, "context")


BARE = """
import sys

class NoNumpy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "numpy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoNumpy())
import importlib.util, os

def load(path):
    spec = importlib.util.spec_from_file_location("program", path)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program

class Child:
    def say(self, key, target="", code=None, text="", elapsed_s=0.0, **data):
        print(key, code, data.get("wrong_words"), data.get("wrong_inputs"))
    def step(self, name, target=""):
        pass
    def timed(self):
        return lambda: 0.0

load(sys.argv[1]).main(Child(), {"target": "cpu:0", "device": "cpu"})
print("threads", len(os.listdir("/proc/self/task")))
print("loaded", sorted({"numpy", "probe"} & set(sys.modules)))
"""


def test_it_needs_no_numpy_and_starts_no_thread() -> None:
    """Loaded by its path under an interpreter without numpy, as in a forked child: exact, and single-threaded."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", BARE, tensor.__file__],
        env=dict(os.environ) | one,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = ended.stdout.splitlines()
    assert lines == [f"tensor:{dtype} 0 0 0" for dtype in FORMATS] + ["done 0 0 0", "threads 1", "loaded []"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_every_dtype_is_exact_on_the_gpu(precision: str) -> None:
    """A healthy GPU, whatever the caller had set: the arch, then three exact dtypes, then the end."""
    with tensor.tf32_off():
        if PRECISION == "fp32_precision":
            torch.backends.cuda.matmul.fp32_precision = precision
        else:
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        child = run("cuda")
    assert child.keys == ["arch", "tensor:fp32", "tensor:bf16", "tensor:fp16", "done"]
    assert (child.records[-1]["wrong_words"], child.records[-1]["wrong_inputs"]) == (0, 0)
