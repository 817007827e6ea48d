"""Rung 4: does torch compute exactly? Run in a process forked from the one that has imported torch.

::

    per dtype (fp32, bf16, fp16), twice, 256 x 256 with K = 256:

    closed form -> words of A, B --copy--> device: A @ B --copy--> words of A, B and A @ B
         |                                                              |
         +--> the same three by integer arithmetic on the host -------> ==, word by word

*Dense*: entries -1, 0, 1, so every partial sum, in whatever order, is an integer of magnitude <= 256, which all three
dtypes and TF32 hold exactly: all of the adders take part. *Routing*: A is random in every mantissa bit and B a signed
permutation times powers of two, so the product is A's own words moved, with another sign and exponent: every bit of a
word takes part, for which TF32 must be off. What a product rounds away is never seen in it, so the inputs are read
back from the device as well. One wrong bit in any of these words fails the test.

Records: ``arch`` (CUDA only); ``tensor:fp32``, ``tensor:bf16``, ``tensor:fp16``; ``done``. A ``tensor:`` record with a
nonzero code is the last: the call it names raised, and that dtype could not be tested. A ROCm build says ``rocm`` and
nothing else.

Standard library and torch only (numpy may be missing), Python >= 3.9. Over 300 lines because making the words, the
product on the device and the same on the host rest on one layout of a dtype, and are judged only beside each other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

SIZE = 256
"""K = 256 is the largest at which bf16, with 8 significant bits, holds every sum of K entries of -1, 0, 1."""
WORDS = SIZE * SIZE

CUDA_ERROR_OUT_OF_MEMORY = 2
NUMBER_UNKNOWN = -1
"""The code of an error whose CUDA number torch does not tell; 0 would be success."""

ROUNDING_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
"""With these the environment makes cuBLAS and oneDNN round fp32 inputs, whatever torch's own flags say.

``NVIDIA_TF32_OVERRIDE=1`` left in place made 65,529 of a healthy H100's 65,536 routed fp32 words wrong (torch 2.11).
"""


class Format(NamedTuple):
    """How a dtype's word is laid out: a sign bit, then the exponent, then the mantissa."""

    name: str
    dtype: torch.dtype
    word: torch.dtype
    """The integer type of the same width: words are compared as bits, never as numbers."""
    mantissa_bits: int
    exponent_bias: int

    @property
    def sign_bit(self) -> int:
        return int(torch.iinfo(self.word).bits) - 1


FORMATS = (
    Format("fp32", torch.float32, torch.int32, 23, 127),
    Format("bf16", torch.bfloat16, torch.int16, 7, 127),
    Format("fp16", torch.float16, torch.int16, 10, 15),
)

EXPONENTS = 8
LOWEST_EXPONENT = -4
"""Of a routing entry of A, so they are -4 to 3; with B's they become -7 to 7, and fp16 is normal from -14 to 15."""
LOWEST_SCALE = -3
"""Of a routing entry of B: -3 to 4."""


class Product(NamedTuple):
    """Two matrices and their exact product, each as words.

    B is held transposed: with its columns contiguous torch's CPU kernels take 1.7 ms for fp16, with its rows 12 ms.
    """

    kind: str
    left: torch.Tensor
    right_transposed: torch.Tensor
    expected: torch.Tensor


class Comparison(NamedTuple):
    """One matrix as the device held it, beside what it should be; the place is that of the first wrong word."""

    matrix: str
    is_input: bool
    wrong: int
    row: int = -1
    column: int = -1
    bits: int = 0


class DeviceError(Exception):
    """What torch raised: in which call, its CUDA number where torch tells it, and its first line."""

    def __init__(self, call: str, error: Exception) -> None:
        self.call = call
        self.code = error_code(error)
        self.text = str(error).strip().partition("\n")[0]
        super().__init__(f"{call}: {self.text}")


def main(child: Any, job: dict[str, Any]) -> None:
    """Test one device; `job` is ``{"target", "device": "cuda" or "cpu", "seed": int, optional}``.

    The device "count" is none: it asks how many torch sees.
    """
    target, device = job["target"], job["device"]
    if device == "count":
        survey(child, target)
        return
    if device == "cuda" and torch.version.hip:
        child.say("rocm", target, text=torch.version.hip)
        return
    for name in ROUNDING_VARIABLES:  # the libraries read them at their first product, which is still to come
        os.environ.pop(name, None)
    elapsed = child.timed()
    dtype = FORMATS[0].name
    comparisons: list[Comparison] = []
    try:
        if device == "cuda":
            open_gpu(child, target)
        inputs = Inputs(job.get("seed", int.from_bytes(os.urandom(4), "little")))
        for form in FORMATS:
            dtype = form.name
            comparisons += test_format(child, target, device, form, inputs)
    except DeviceError as error:
        told = {"code": error.code, "text": error.text, "call": error.call}
        child.say(f"tensor:{dtype}", target, elapsed_s=elapsed(), dtype=dtype, **told)
        return
    child.say("done", target, code=0, elapsed_s=elapsed(), seed=inputs.seed, **counts(comparisons))


def survey(child: Any, target: str) -> None:
    """How many GPUs torch counts under the user's own environment: in a fork, which asking makes unfit for more."""
    child.step("torch device_count", target)
    child.say("count", target, code=0, count=torch.cuda.device_count())


def open_gpu(child: Any, target: str) -> None:
    """Initialise CUDA, say what the device is and what torch was built for, then make the context."""
    elapsed = child.timed()
    try:
        with calling(child, target, "torch cuInit"):
            data = describe_gpu()
    except DeviceError as error:
        child.say("arch", target, code=error.code, text=error.text, elapsed_s=elapsed(), call=error.call)
        raise
    child.say("arch", target, code=0, elapsed_s=elapsed(), **data)
    with calling(child, target, "context"):
        torch.empty(1, device="cuda")
        torch.cuda.synchronize()


def describe_gpu() -> dict[str, Any]:
    if torch.version.cuda is None:
        raise RuntimeError("torch was built without CUDA")
    torch.cuda.init()
    device = torch.cuda.get_device_properties(0)
    built_for = torch._C._cuda_getArchFlags() or ""  # noqa: SLF001 - get_arch_list() would call is_available()
    return {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "arch_list": built_for.split(),
        "cuda": torch.version.cuda,
    }


def test_format(child: Any, target: str, device: str, form: Format, inputs: Inputs) -> list[Comparison]:
    """Multiply the dense and the routing pair in one dtype and say how many words are wrong, and where the first is."""
    elapsed = child.timed()
    comparisons = []
    for product in (inputs.dense(form), inputs.routing(form)):
        with calling(child, target, f"{form.name} {product.kind}"):
            seen = compute(product, form, device)
        comparisons += compare(product, seen)
    data = {"dtype": form.name, **counts(comparisons), **first(comparisons)}
    child.say(f"tensor:{form.name}", target, code=0, elapsed_s=elapsed(), **data)
    return comparisons


def compute(product: Product, form: Format, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The words of A, of B transposed and of A @ B, as the device holds them once it has multiplied."""
    left = product.left.view(form.dtype).to(device, copy=True)
    right_transposed = product.right_transposed.view(form.dtype).to(device, copy=True)
    with tf32_off() if product.kind == "routing" else nullcontext():
        result = multiply(left, right_transposed.t())
    return left.cpu().view(form.word), right_transposed.cpu().view(form.word), result.cpu().view(form.word)


def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.mm(left, right)


@contextmanager
def tf32_off() -> Iterator[None]:
    """Multiply fp32 as fp32 inside; the caller's setting returns after it.

    torch 2.9 renamed the flag. Where it has the new name the old one is left alone: reading it raises once the two
    disagree, as they would here in NVIDIA's images, which set ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE``.
    """
    flags = torch.backends.cuda.matmul
    name, off = ("fp32_precision", "ieee") if hasattr(flags, "fp32_precision") else ("allow_tf32", False)
    before = getattr(flags, name)
    setattr(flags, name, off)
    try:
        yield
    finally:
        setattr(flags, name, before)


@contextmanager
def calling(child: Any, target: str, call: str) -> Iterator[None]:
    """Name what may hang before it can; what torch raises in it becomes a `DeviceError`.

    Its CUDA errors (AcceleratorError, OutOfMemoryError, those of cuBLAS) are RuntimeErrors. References and comparisons
    stay outside: a mistake of probe's own is not to be taken for the device's.
    """
    child.step(call, target)
    try:
        yield
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        raise DeviceError(call, error) from error


def error_code(error: Exception) -> int:
    """The CUDA number of what torch raised, or `NUMBER_UNKNOWN`.

    AcceleratorError (torch >= 2.8) has it; before that only ``torch.cuda.init`` prints it (``Error 802: ...``).
    A handle of cuBLAS that does not fit is ``CUBLAS_STATUS_ALLOC_FAILED`` (an H100 with 540 MiB free).
    """
    message = str(error)
    if "out of memory" in message or "CUBLAS_STATUS_ALLOC_FAILED" in message:
        return CUDA_ERROR_OUT_OF_MEMORY
    number = getattr(error, "error_code", None)
    if isinstance(number, int):
        return number
    printed = re.search(r"\bError (\d+):", message)
    return int(printed.group(1)) if printed else NUMBER_UNKNOWN


class Inputs:
    """Every matrix of one run, in closed form of a 32-bit seed.

    A fresh seed per run means that no word left in memory by an earlier run can pass for an answer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        words = random_words(seed, 2 * WORDS + 2 * SIZE)
        self._routed, pairs = words[: 2 * WORDS].view(2, SIZE, SIZE)
        self._left = trits(pairs & 0xFFFF)
        self._right_transposed = trits(pairs >> 16)
        # int32 on the host: another unit and another algorithm than those under test, on a CPU target too
        self._product = torch.mm(self._left, self._right_transposed.t())
        signs, scales = words[2 * WORDS :].view(2, SIZE)
        self._source = (torch.arange(SIZE) * (seed | 1) + (seed >> 8)) % SIZE  # an odd factor: a permutation
        self._negative = signs & 1
        self._scale = scales % EXPONENTS + LOWEST_SCALE

    def dense(self, form: Format) -> Product:
        return Product("dense", *(words_of(m, form) for m in (self._left, self._right_transposed, self._product)))

    def routing(self, form: Format) -> Product:
        """Column j of the product is column source[j] of A times plus or minus 2^scale[j].

        Built and moved as words: no floating-point unit of the host has a part in what is expected.
        """
        sign, mantissa = 1 << form.sign_bit, form.mantissa_bits
        kept = sign | ((EXPONENTS << mantissa) - 1)  # of a random word: the sign, three exponent bits, the mantissa
        left = ((self._routed & kept) + ((form.exponent_bias + LOWEST_EXPONENT) << mantissa)).to(form.word)
        flip = (self._negative << form.sign_bit).to(form.word)
        power = (self._scale << mantissa).to(form.word)
        right_transposed = torch.zeros(SIZE, SIZE, dtype=form.word)
        right_transposed[torch.arange(SIZE), self._source] = flip + power + (form.exponent_bias << mantissa)
        return Product("routing", left, right_transposed, (left[:, self._source] ^ flip) + power)


def random_words(seed: int, count: int) -> torch.Tensor:
    """32-bit words, one per index, as int64: Wellons' `lowbias32` of index plus seed (nullprogram.com, 2018).

    In place, because in a fresh fork a new buffer costs more in page faults than its arithmetic.
    """
    x = torch.arange(seed, seed + count)
    x &= 0xFFFFFFFF
    x ^= x >> 16
    x *= 0x7FEB352D
    x &= 0xFFFFFFFF
    x ^= x >> 15
    x *= 0x846CA68B - (1 << 32)  # the same modulo 2^32, and no overflow of int64
    x &= 0xFFFFFFFF
    x ^= x >> 16
    return x


def trits(words: torch.Tensor) -> torch.Tensor:
    """-1, 0 or 1, evenly, for each 16-bit word, as int32."""
    return (words.to(torch.int32) * 3 >> 16) - 1


def words_of(integers: torch.Tensor, form: Format) -> torch.Tensor:
    """The words of integers that the format holds exactly."""
    return integers.to(form.dtype).view(form.word)


def wrong_words(got: torch.Tensor, expected: torch.Tensor) -> int:
    return int(torch.count_nonzero(got != expected))


def compare(product: Product, seen: Sequence[torch.Tensor]) -> list[Comparison]:
    """A, B and A @ B, word by word; a place in B is a place in B, not in its transpose."""
    left, right_transposed, result = seen
    return [
        compare_matrix(f"{product.kind} A", True, left, product.left),
        compare_matrix(f"{product.kind} B", True, right_transposed.t(), product.right_transposed.t()),
        compare_matrix(f"{product.kind} A @ B", False, result, product.expected),
    ]


def compare_matrix(matrix: str, is_input: bool, got: torch.Tensor, expected: torch.Tensor) -> Comparison:
    wrong = wrong_words(got, expected)
    if not wrong:
        return Comparison(matrix, is_input, 0)
    row, column = (got != expected).nonzero()[0].tolist()
    mask = (1 << torch.iinfo(got.dtype).bits) - 1
    return Comparison(matrix, is_input, wrong, row, column, int(got[row, column] ^ expected[row, column]) & mask)


def counts(comparisons: Sequence[Comparison]) -> dict[str, int]:
    outputs = [comparison for comparison in comparisons if not comparison.is_input]
    inputs = [comparison for comparison in comparisons if comparison.is_input]
    return {
        "words": WORDS * len(outputs),
        "wrong_words": sum(comparison.wrong for comparison in outputs),
        "wrong_dense_words": sum(comparison.wrong for comparison in outputs if comparison.matrix.startswith("dense")),
        "input_words": WORDS * len(inputs),
        "wrong_inputs": sum(comparison.wrong for comparison in inputs),
    }


def first(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Where the first wrong word is; inputs come before the product that they spoil. Nothing where none is wrong."""
    for comparison in comparisons:
        if comparison.wrong:
            return {
                "first_wrong": comparison.matrix,
                "first_wrong_row": comparison.row,
                "first_wrong_column": comparison.column,
                "first_wrong_bits_xor": f"{comparison.bits:#x}",
            }
    return {}
