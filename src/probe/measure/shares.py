"""Which programs there are, and how they share the time. Pure.

The time that a program leaves over falls to those after it.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from msgspec import Struct

PLANNED, SLACK_S = 0.95, 0.3
"""Of the time that is left this much is shared out: the case in hand when a share ends is finished and verified."""
GRACE = 1.5
"""A program that takes so many times its share, and `GRACE_S`, hangs: verification is not in what it plans."""
GRACE_S = 4.0
FORK_S = 0.6
"""Of each share: until a forked process has its context (on an H100: 0.46 s; without one, on a busy core, 0.3)."""


class Entry(Struct, frozen=True):
    """One program of the list."""

    name: str
    weight: float
    """Of the time that is left, against the weights of the programs that follow."""
    least_s: float
    """With less than this it is not started: ``skip: no time``."""
    what: str
    """With its name at most `progress.SHOWN` characters."""
    torch: bool = True
    """Forked from the process that has imported torch."""
    together: bool = False
    """All GPUs at once in ranks of one group, or in one process: needs two of them."""
    gpu_only: bool = False


ENTRIES = (
    Entry("startup", 12, 0.5, "phases of a start with torch", torch=False),
    Entry("checks", 9, 0.5, "what each check costs", torch=False),
    Entry("matmul", 27, 0.5, "products by dtype and size"),
    Entry("memory", 9, 0.3, "copies within device memory"),
    Entry("host", 18, 0.5, "copies from and to host memory", gpu_only=True),
    Entry("peer", 10, 0.5, "copies between pairs of GPUs", together=True),
    Entry("collective", 40, 1.0, "collectives over all GPUs", together=True),
)
"""The weights are what each takes of a default run on one H100, matmul and those of copies for three passes or more;
for the last two on eight."""
BY_NAME = {entry.name: entry for entry in ENTRIES}


def chosen(only: Sequence[str], skip: Sequence[str]) -> tuple[Entry, ...]:
    """Those that `only` names, if it names any, without those of `skip`; both are names or globs."""
    wanted = [entry for entry in ENTRIES if not only or named(entry.name, only)]
    return tuple(entry for entry in wanted if not named(entry.name, skip))


def named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def share_s(entry: Entry, following: Iterable[Entry], left_s: float) -> float:
    """Of the seconds that are left, those of `entry`; 0 where it could do nothing with them."""
    weights = entry.weight + sum(other.weight for other in following)
    share = left_s * entry.weight / weights
    return share if share >= entry.least_s else 0.0


def planned_s(left_s: float) -> float:
    """What may be shared out of the time that is left."""
    return max(0.0, left_s * PLANNED - SLACK_S)


def times(share_s: float) -> tuple[float, float]:
    """Of a share: what the child may plan with, and after which time it is killed."""
    left_s = max(0.2, share_s - FORK_S)
    return left_s, left_s * GRACE + GRACE_S
