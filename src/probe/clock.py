"""When this run began, and what its budget allows until when.

::

    0 ----------------------------- kill ------- reaped -- write -- net -- budget
    |  checks run, outcomes stream   | kill, reap   |       |        |
                             budget - max(0.8, 8 %) |    - 0.2 s   - 0.1 s
                                                  - 0.3 s

Times are `time.monotonic` values or durations in seconds; a duration is named ``..._s``, an instant ``..._at``.
"""

import os
import time
from typing import NamedTuple

MAX_BELIEVED_AGE_S = 2.0
"""A process keeps its start time across exec, so a shell that sleeps and then execs probe looks old: an age over
this is no start-up time of an interpreter (the slowest seen, on a loaded 2-core machine, was 0.4 s)."""
ASSUMED_AGE_S = 0.1

DEFAULT_BUDGET_S = 9.0
"""Docker's usual HEALTHCHECK time-out is 10 s, counted from after the start of the exec."""
GATE_BUDGET_S = 120.0
SMALLEST_BUDGET_S = 1.0
DAY_S = 86400.0

_UNITS = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0))  # "ms" first: it ends in "s" too


def parse_duration(text: str) -> float:
    """Seconds in ``"9s"``, ``"250ms"``, ``"1.5m"``, ``"1h"``; ValueError for all else, under 1 ms, or over a day."""
    for unit, size_s in _UNITS:
        number = text.removesuffix(unit)
        if number == text:
            continue
        whole, point, part = number.partition(".")
        if not digits(whole) or (point and not digits(part)):
            break
        seconds = round(float(number) * size_s, 6)
        if 0.001 <= seconds <= DAY_S:
            return seconds
        break
    raise ValueError(text)


def digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def process_age_s() -> float:
    """Seconds since this interpreter was started, as far as the kernel can tell; else `ASSUMED_AGE_S`."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            ticks = int(stat.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return ASSUMED_AGE_S
    return age if 0 <= age <= MAX_BELIEVED_AGE_S else ASSUMED_AGE_S


class Budget(NamedTuple):
    """A hard budget that began at `began_at`."""

    began_at: float
    budget_s: float

    @classmethod
    def starting_with_this_process(cls, budget_s: float) -> "Budget":
        return cls(time.monotonic() - process_age_s(), budget_s)

    @property
    def kill_s(self) -> float:
        """Children are killed: the rest of the budget is for reaping them and for the verdict."""
        return self.budget_s - max(0.8, 0.08 * self.budget_s)

    @property
    def child_limit_s(self) -> float:
        """A child ends itself here, before it is killed, so that it can still print where it hung."""
        return max(0.05, self.kill_s - 0.1)

    @property
    def reaped_s(self) -> float:
        return self.budget_s - 0.3

    @property
    def write_s(self) -> float:
        return self.budget_s - 0.2

    @property
    def net_s(self) -> float:
        return self.budget_s - 0.1

    @property
    def last_resort_s(self) -> float:
        return self.budget_s + 0.05

    def elapsed_s(self) -> float:
        return time.monotonic() - self.began_at

    def left_s(self, until_s: float) -> float:
        """Seconds from now until `until_s` of the budget, never negative."""
        return max(0.0, until_s - self.elapsed_s())
