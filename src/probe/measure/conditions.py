"""Clocks, throttle reasons, heat and watts around and during each program, from readings that a child of NVML takes.

Readings before, during and after: a GPU that has just finished lets go of its clocks within milliseconds, so what
held them back is seen only meanwhile.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_
from statistics import median
from typing import Any, NamedTuple

from msgspec.structs import replace

from probe.measure.model import Condition, Gpu
from probe.measure.talk import Talk
from probe.model import Record
from probe.worker.parent import Process

ANOTHER_S = 1.0


class Reading(NamedTuple):
    at: float
    """By `time.monotonic`, when it was heard."""
    target: str
    data: dict[str, Any]


class Meter:
    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self._firsts: dict[tuple[Process, str], float] = {}

    def take(self, process: Process, record: Record, at: float) -> None:
        """Any record of any child."""
        self._firsts.setdefault((process, record.key), at)
        if process.worker == "meter" and record.key == "reading" and record.code == 0:
            self.readings.append(Reading(at, record.target, record.data))

    def first_heard(self, process: Process, key: str) -> Callable[[], float | None]:
        """When the first record of that key came, once it has."""
        return lambda: self._firsts.get((process, key))

    def wait_for_another(self, talk: Talk, left_s: float, vain: Callable[[], bool] = lambda: False) -> None:
        """So that the first program has a reading before it and the last one after it; unless it is `vain`."""
        have = len(self.readings)
        talk.until(lambda: len(self.readings) > have or vain(), time.monotonic() + min(ANOTHER_S, left_s))

    def with_link_seen(self, gpu: Gpu) -> Gpu:
        """The PCIe link at its best: at rest it runs at a lower generation."""
        seen = [reading.data for reading in self.readings if reading.target == gpu.target]
        generations = [data["pcie_generation"] for data in seen if data.get("pcie_generation")]
        return replace(gpu, pcie_generation=max([*generations, gpu.pcie_generation or 0]) or None)

    def conditions(self, gpus: Iterable[Gpu], span: tuple[float, float] | None) -> tuple[Condition, ...]:
        """Of each GPU, of a program that ran from one instant to another."""
        if span is None:
            return ()
        return tuple(self._condition(gpu.target, *span) for gpu in gpus)

    def _condition(self, target: str, began: float, ended: float) -> Condition:
        mine = [reading for reading in self.readings if reading.target == target]
        before = [reading.data for reading in mine if reading.at <= began][-1:]
        during = [reading.data for reading in mine if began < reading.at <= ended]
        after = [reading.data for reading in mine if reading.at > ended][:1]
        reasons = _values(during, "throttle_reasons")
        return Condition(
            target,
            sm_mhz_before=_one(before, "sm_mhz"),
            sm_mhz_during=_median(during, "sm_mhz"),
            sm_mhz_after=_one(after, "sm_mhz"),
            memory_mhz_during=_median(during, "memory_mhz"),
            celsius_before=_one(before, "celsius"),
            celsius_after=_one(after, "celsius"),
            watts_during=max(_values(during, "watts"), default=None),
            throttle_reasons_before=_one(before, "throttle_reasons"),
            throttle_reasons_during=reduce(or_, reasons) if reasons else None,
            throttle_reasons_after=_one(after, "throttle_reasons"),
        )


def _values(readings: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [data[key] for data in readings if data.get(key) is not None]


def _one(readings: Sequence[dict[str, Any]], key: str) -> Any:
    return next(iter(_values(readings, key)), None)


def _median(readings: Sequence[dict[str, Any]], key: str) -> float | None:
    values = _values(readings, key)
    return median(values) if values else None
