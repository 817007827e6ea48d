"""Seconds per call, a number a sample, of each pass -> what is reported of a case. Pure."""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from statistics import median

from msgspec import Struct

BLOCKS = 10
"""Consecutive parts of the samples where there were too few passes. Neighbours in time are alike (clocks, heat, other
work), so scatter is taken between parts and not between samples."""
FEWEST_PASSES = 3
"""With so many a block is a pass: what differs from one to the next (where the buffers lie, the moment) is in the
scatter then, and not in that of neighbours. Two passes have a scatter of one degree of freedom: it says nothing."""

SCALES = {"FLOP": (1e12, "TFLOP/s"), "B": (1e9, "GB/s")}


class Summary(Struct, frozen=True):
    unit: str
    median: float
    p5: float
    p95: float
    n: int
    passes: int
    blocks: tuple[float, ...]


def summarise(passes: Sequence[Sequence[float]], amount: float, unit: str) -> Summary:
    """`amount` of `unit` ("FLOP", "B") is done in each call, and rates are reported; "s": seconds are."""
    scale, shown = SCALES.get(unit, (1.0, "s"))
    rates = [[each if unit == "s" else amount / scale / max(each, 1e-12) for each in one] for one in passes]
    values = list(chain.from_iterable(rates))
    ordered = sorted(values)
    blocks = rates if len(rates) >= FEWEST_PASSES else parts(values)
    return Summary(
        shown,
        significant(median(ordered)),
        significant(quantile(ordered, 0.05)),
        significant(quantile(ordered, 0.95)),
        len(values),
        len(rates),
        tuple(significant(median(block)) for block in blocks),
    )


def joined(processes: Iterable[Iterable[Sequence[float]]]) -> list[list[float]]:
    """Seconds per call of one case in each pass, of what each process says of each.

    Several processes are ranks of one group: a call takes as long as the slowest of them says. A pass that one of them
    did not come to say counts for none.
    """
    return [[max(each) for each in zip(*said, strict=False)] for said in zip(*processes, strict=False)]


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """Between the two nearest values, linearly (definition 7 of Hyndman and Fan, 1996)."""
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def parts(values: Sequence[float]) -> list[Sequence[float]]:
    """At most `BLOCKS` consecutive parts of nearly equal length, none empty."""
    count = min(BLOCKS, len(values))
    cuts = [round(at * len(values) / count) for at in range(count + 1)]
    return [values[start:stop] for start, stop in pairwise(cuts)]


def significant(value: float) -> float:
    """Six digits: no timing has more."""
    return float(f"{value:.6g}")
