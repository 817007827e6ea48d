"""Matrix products, by dtype and size: ``torch.mm``, square, on inputs that no cache holds.

Inputs are random in every mantissa bit of the multiplied format, with magnitudes from 1 to 2: data with fewer random
bits draws less power, and a GPU at its power limit then runs faster than any real work would. A product of such
numbers is not exact, so two things are asked of the very results that were timed, of every set of buffers that takes
turns, each of which is made NaN before the timing:

- every word equals, bit by bit, what the same call gave before (GPU only: a CPU's libraries may split the work another
  way);
- 256 x 256 words, shared out among the sets, in random rows and columns, are those of a 64-bit product on the host, but
  for one rounding to the output's dtype and what summing in 32 bits may cost.

Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

SIZES = {"cuda": (8192, 4096, 2048, 1024), "cpu": (256, 512, 1024, 2048)}
"""On GPUs what matters most comes first: it is measured when time is short. On CPUs what is small, by which the time of
the next is told."""
AROUND = 5
"""Products of a case beside its samples: two until it is known how long one takes, one that is kept, two of warm-up."""
SAMPLED = 256
ACCUMULATION = 4.0
"""Allowed error of the sum, in units of 2^-24 times the sum of magnitudes: blocked sums in fp32 stay below 1."""
TRUNCATED = 32.0
"""The same where a tensor core's truncated sums are seen in full, as in TF32: their error grows with the square root
of K, to a standard deviation of 3.6 units at K = 8192 (an H100, torch 2.11). One product left out would be 900."""


class Kind(NamedTuple):
    name: str
    dtype: torch.dtype
    output_bits: int
    """Bits of the output's significand, the hidden one too."""
    input_bits: int
    """Of what is multiplied."""
    accumulation: float = ACCUMULATION


KINDS = (
    Kind("bf16", torch.bfloat16, 8, 8),
    Kind("fp16", torch.float16, 11, 11),
    Kind("tf32", torch.float32, 24, 11, TRUNCATED),
    Kind("fp32", torch.float32, 24, 24),
)


def main(child: Any, job: dict[str, Any], method: Any) -> None:
    target = job["target"]
    clock = method.Clock(job["share_s"])
    device = method.open_device(child, job, target)
    one_s: dict[str, tuple[int, float]] = {}

    def case(kind: Kind, size: int) -> Callable[[Any, int], None]:
        def measure(part: Any, _: int) -> None:
            if too_slow(one_s.get(kind.name), size, part.most_s() / (method.FEWEST + AROUND)):
                raise method.NoTime("by what a smaller one took")
            one_s[kind.name] = size, min(one(child, target, method, device, kind, size, part))

        return measure

    possibles = [kind for kind in KINDS if possible(kind, device)]
    cases = {f"{kind.name} {size}": case(kind, size) for size in SIZES[device.kind] for kind in possibles}
    method.in_turn(child, target, clock, cases)


def too_slow(known: tuple[int, float] | None, size: int, most_s: float) -> bool:
    """Whether one product would take too long: a CPU without instructions for 16 bits takes seconds for one."""
    return known is not None and size > known[0] and known[1] * (size / known[0]) ** 3 > most_s


def possible(kind: Kind, device: Any) -> bool:
    """TF32 exists from compute capability 8.0 on."""
    return kind.name != "tf32" or (device.is_cuda and torch.cuda.get_device_capability(device.number) >= (8, 0))


def one(child: Any, target: str, method: Any, device: Any, kind: Kind, size: int, part: Any) -> list[float]:
    if part.seconds <= 0:
        raise method.NoTime("nothing left")
    torch.backends.cuda.matmul.allow_tf32 = kind.name == "tf32"
    element = torch.finfo(kind.dtype).bits // 8
    count = method.sets_beyond_cache(device, 3 * size * size * element)
    first = inputs(size, kind, device), inputs(size, kind, device)
    # equal but for their order, so that none is faster than another
    sets = [first] + [(first[0].roll(at, 0), first[1].roll(at, 1)) for at in range(1, count)]
    results = [torch.empty(size, size, dtype=kind.dtype, device=device.torch) for _ in range(count)]

    def call(at: int) -> None:
        left, right = sets[at % len(sets)]
        torch.mm(left, right, out=results[at % len(sets)])

    call(0)
    device.synchronize()
    began = time.perf_counter()
    call(0)
    device.synchronize()
    one_s = time.perf_counter() - began
    if one_s * (method.FEWEST + AROUND) > part.most_s():
        raise method.NoTime("by what its first product took")
    if one_s * count >= part.seconds / 2:
        del sets[1:], results[1:]  # a product slow enough to matter is not made by a cache
    before = befores(call, results, device)
    seconds: list[float] = method.seconds_of(call, device, part, turns=len(sets))
    rows = max(1, SAMPLED // len(sets))
    each = (compare(*pair, *made, kind, rows) for pair, made in zip(sets, zip(results, before)))
    wrong = next(filter(None, each), "")
    method.say(
        child,
        target,
        f"{kind.name} {size}",
        seconds=seconds,
        amount=2.0 * size**3,
        unit="FLOP",
        verified=not wrong,
        wrong=wrong,
        dtype=kind.name,
        size=size,
        buffers=len(sets),
    )
    return seconds


def befores(call: Callable[[int], None], results: list[torch.Tensor], device: Any) -> list[torch.Tensor | None]:
    """What each call gives (GPU only), and results that are none: what the timing leaves undone must look wrong."""
    for at in range(len(results)):
        call(at)
    device.synchronize()
    kept = [result.clone() if device.is_cuda else None for result in results]
    for result in results:
        result.fill_(float("nan"))
    return kept


def inputs(size: int, kind: Kind, device: Any) -> torch.Tensor:
    """Random signs, and magnitudes from 1 to 2 with as many random bits as are multiplied."""
    magnitudes = torch.rand(size, size, device=device.torch) + 1.0
    signs = torch.randint(0, 2, (size, size), device=device.torch, dtype=torch.int8).mul_(2).sub_(1)
    if kind.input_bits < 24:
        scale = float(1 << (kind.input_bits - 1))
        magnitudes = magnitudes.mul_(scale).floor_().div_(scale)
    return magnitudes.mul_(signs).to(kind.dtype)


def compare(
    left: torch.Tensor,
    right: torch.Tensor,
    result: torch.Tensor,
    before: torch.Tensor | None,
    kind: Kind,
    sampled_rows: int = SAMPLED,
) -> str:
    """What is wrong with the result, or ""."""
    if before is not None:
        word = torch.int16 if result.element_size() == 2 else torch.int32
        changed = int(torch.count_nonzero(result.cpu().view(word) != before.cpu().view(word)))
        if changed:
            return f"{changed} words differ from what the same call gave before"
    rows = torch.randperm(result.shape[0])[:sampled_rows].sort().values
    columns = torch.randperm(result.shape[1])[:SAMPLED].sort().values
    place = rows.to(result.device), columns.to(result.device)
    a, b = left[place[0]].cpu().double(), right[:, place[1]].cpu().double()
    got = result[place[0]][:, place[1]].cpu().double()
    expected, magnitude = a @ b, a.abs() @ b.abs()
    ulp = torch.exp2(torch.floor(torch.log2(expected.abs().clamp(min=2.0**-20))) - (kind.output_bits - 1))
    allowed = ulp + kind.accumulation * 2.0**-24 * magnitude
    off = int(torch.count_nonzero(~((got - expected).abs() <= allowed)))
    return f"{off} of {got.numel()} sampled words are not the product" if off else ""
