"""The numbers of a report that are worth a graph: each GPU's own, finite, with their unit in their key. Pure."""

import math
import re
from collections.abc import Iterator

from msgspec import Struct

from probe.model import EVERY_GPU, Outcome, Report, Scalar, Status

KEY = re.compile(r"([a-z][a-z0-9_]*)_(celsius|bytes|percent|s)")
OBSERVED = frozenset({Status.PASS, Status.WARN, Status.FAIL})
"""What a check that ended otherwise has in its data is no measurement: 4294967295 degrees make it `unknown`."""


class Measure(Struct, frozen=True):
    check: str
    target: str
    name: str
    """Without the unit: the `gpu` of ``gpu_celsius``."""
    unit: str
    value: float


def measures(report: Report) -> Iterator[Measure]:
    """The numbers, in the order of the checks."""
    for outcome in report.checks:
        if outcome.target.startswith("gpu:") and outcome.target != EVERY_GPU and outcome.status in OBSERVED:
            yield from _of(outcome)


def _of(outcome: Outcome) -> Iterator[Measure]:
    for key, value in outcome.data.items():
        found = KEY.fullmatch(key)
        number = finite(value)
        if found and number is not None:
            yield Measure(outcome.id, outcome.target, found[1], found[2], number)


def finite(value: Scalar) -> float | None:
    """`value` where it is a number that every reader of numbers understands."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer beyond every float
        return None
