"""What the ranks of a collective send, in closed form: every rank can tell what every other one should have sent.

::

    routed   at each index one rank, the owner, sends a word with random bits, all others 0: the sum is that word
    dense    every rank sends -1, 0 or 1 (of 256 ranks at a time): every partial sum, in any order, is exact

Routed words exercise every bit of sign and mantissa on the way, dense ones the adders; fp32, bf16 and int64 hold both
exactly, so the result is compared as words, with ``==``. The owner of a wrong routed word tells whose bytes it was.
All of it depends on the iteration: data that stays in a buffer from the last one is wrong in the next. `index` is of
words in a row wherever data is made: what repeats is then made once.

Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

BLOCK = 256
"""bf16 has 8 significant bits: sums of up to 256 entries of -1, 0, 1 are exact in it, in whatever order."""
EXPONENT = 120
"""Of routed words, with 3 random bits below it: magnitudes from 2^-7 to 2, far from what rounds or overflows."""


class Format(NamedTuple):
    name: str
    dtype: Any
    word: Any
    """The integer type of the same width: words are compared as bits, never as numbers."""
    mantissa_bits: int
    """0: an integer type, all of whose bits are random."""


FORMATS = {
    "fp32": Format("fp32", torch.float32, torch.int32, 23),
    "bf16": Format("bf16", torch.bfloat16, torch.int16, 7),
    "int64": Format("int64", torch.int64, torch.int64, 0),
}


def mixed(index: torch.Tensor, salt: int) -> torch.Tensor:
    """64 random-looking bits for each index (int64, wrapping, the same on every device); the mixer of splitmix64."""
    word = index * -7046029254386353131 + (salt * 0x1F123BB5 + 1)
    word = (word ^ _shifted(word, 30)) * -4658895280553007687
    word = (word ^ _shifted(word, 27)) * -7723592293110705685
    return word ^ _shifted(word, 31)


def _shifted(word: torch.Tensor, by: int) -> torch.Tensor:
    """A shift to the right that brings in zeros: torch's own brings in the sign, which would cancel it above."""
    return (word >> by) & ((1 << (64 - by)) - 1)


def routed_words(form: Format, index: torch.Tensor, iteration: int) -> torch.Tensor:
    """The word that the owner of each index sends."""
    bits = mixed(index, iteration)
    if not form.mantissa_bits:
        return bits
    sign = (bits >> 63) & 1
    exponent = EXPONENT + ((bits >> 40) & 7)
    mantissa = bits & ((1 << form.mantissa_bits) - 1)
    whole = (exponent << form.mantissa_bits) | mantissa
    # two's complement by hand: a plain shift of the sign bit would not fit the narrower type
    width = 16 if form.mantissa_bits == 7 else 32
    return (whole - (sign << (width - 1))).to(form.word)


def owners(index: torch.Tensor, ranks: int, iteration: int) -> torch.Tensor:
    return (index + iteration) % ranks


def routed(form: Format, index: torch.Tensor, rank: int, ranks: int, iteration: int) -> torch.Tensor:
    """What `rank` sends: its own words, and 0 where another rank is the owner."""
    words = torch.zeros(len(index), dtype=form.word, device=index.device)
    first = (rank - iteration - int(index[0])) % ranks
    words[first::ranks] = routed_words(form, index[first::ranks], iteration)
    return words.view(form.dtype)


def _blocks(ranks: int) -> int:
    return (ranks + BLOCK - 1) // BLOCK


def _repeated(make: Callable[[torch.Tensor], torch.Tensor], index: torch.Tensor, period: int) -> torch.Tensor:
    """What `make` gives for these indices, and gives again after each `period` of them."""
    once = make(index[:period])
    return once.repeat((len(index) + period - 1) // period)[: len(index)]


def dense(form: Format, index: torch.Tensor, rank: int, ranks: int, iteration: int) -> torch.Tensor:
    """What `rank` sends: -1, 0 or 1 where its block of ranks has its turn, else 0."""

    def entries(index: torch.Tensor) -> torch.Tensor:
        turn = index % _blocks(ranks) == rank // BLOCK
        return torch.where(turn, (index + rank + iteration) % 3 - 1, torch.zeros_like(index)).to(form.dtype)

    return _repeated(entries, index, 3 * _blocks(ranks))


def dense_sum(form: Format, index: torch.Tensor, ranks: int, iteration: int) -> torch.Tensor:
    """The sum over all ranks: of three ranks in a row it is 0, so at most two of a block are left over."""

    def sums(index: torch.Tensor) -> torch.Tensor:
        first = index % _blocks(ranks) * BLOCK
        left = (torch.clamp(first + BLOCK, max=ranks) - first) % 3
        start = index + first + iteration
        one = start % 3 - 1
        two = one + (start + 1) % 3 - 1
        return torch.where(left == 1, one, torch.where(left == 2, two, torch.zeros_like(one))).to(form.dtype)

    return _repeated(sums, index, 3 * _blocks(ranks))


def sent(kind: str, form: Format, index: torch.Tensor, rank: int, ranks: int, iteration: int) -> torch.Tensor:
    make = routed if kind == "routed" else dense
    return make(form, index, rank, ranks, iteration)


def expected(kind: str, form: Format, index: torch.Tensor, ranks: int, iteration: int) -> torch.Tensor:
    if kind == "routed":
        return routed_words(form, index, iteration).view(form.dtype)
    return dense_sum(form, index, ranks, iteration)


def signature(rank: int, words: int, iteration: int, device: Any) -> torch.Tensor:
    """The words by which `rank` is known in the all-gather of this iteration."""
    index = torch.arange(words, dtype=torch.int64, device=device)
    return mixed(index + rank * words, iteration + 1)
