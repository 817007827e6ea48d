"""Copies between pinned host memory and one GPU: there, back, and both ways at once.

::

    pass 1, 2, ...   256 MiB pinned to send and as much to receive, held: the next pass has other memory
                     16 copies of 16 MiB, 256 of 1 MiB take turns over all of it

How fast a copy is depends on where its memory lies and on what a core's cache still holds of it, and both differ from
run to run: one buffer of 1 MiB was read at 35 GB/s in one run and at 48 in the next (an H100's host). So copies are of
more memory than a cache holds, and figures are over several allocations. The process first moves to the CPUs beside the
GPU: memory pinned on another socket is reached over the link between them, which is not what is to be measured. Every
word that went there and back is compared on the host. Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

MIB = 1 << 20
SIZES = (256 * MIB, 16 * MIB, 1 * MIB)
WHOLE = max(SIZES)
WAYS = ("to device", "to host", "both at once")
MOST_HELD = 4
"""Allocations of pinned memory: 2 GiB."""
TRIED = 64 * MIB
TRIES = 9


def main(child: Any, job: dict[str, Any], method: Any) -> None:
    cpus = move_beside(job.get("bus_id", ""))
    clock = method.Clock(job["share_s"])
    device = method.open_device(child, job, job["target"])
    nodes = nodes_of(os.sched_getaffinity(0))
    if len(nodes) > 1:
        cpus = move_to_fastest(nodes, lambda: rate(device))
    host = Host(child, job["target"], method, device, method.Words(seed=job["seed"]), cpus)
    ways = [Way(name, size) for size in SIZES for name in WAYS]
    cases = {f"{way.name} {way.size // MIB} MiB": host.case(way) for way in ways}
    method.in_turn(child, job["target"], clock, cases)


# ---- where -----------------------------------------------------------------------------------------------------------


def move_beside(bus_id: str) -> str:
    """Run on the CPUs that the kernel says are local to the GPU; the list of them, "" where it does not say."""
    name = bus_id.lower()[-12:]  # NVML's bus id has eight digits of domain, sysfs has four
    try:
        with open(f"/sys/bus/pci/devices/{name}/local_cpulist") as file:
            text = file.read().strip()
        local = {cpu for part in text.split(",") if part for cpu in range_of(part)}
        usable = local & os.sched_getaffinity(0)
        if usable:
            os.sched_setaffinity(0, usable)
            return text
    except (OSError, ValueError):
        pass
    return ""


def range_of(part: str) -> range:
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def nodes_of(cpus: set[int], folder: str = "/sys/devices/system/node") -> list[set[int]]:
    """`cpus` by their NUMA node; a virtual machine may have several without saying which one the GPU is at."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, "node[0-9]*", "cpulist"))):
        with open(path) as file:
            here = {cpu for part in file.read().strip().split(",") if part for cpu in range_of(part)}
        if here & cpus:
            found.append(here & cpus)
    return found


def move_to_fastest(nodes: Sequence[set[int]], rate: Callable[[], float]) -> str:
    """Run on the node whose memory the GPU reads fastest; the list of its CPUs."""
    rates = []
    for node in nodes:
        os.sched_setaffinity(0, node)
        rates.append(rate())
    best = nodes[rates.index(max(rates))]
    os.sched_setaffinity(0, best)
    return ",".join(map(str, sorted(best)))


HELD: list[torch.Tensor] = []
"""Of each node tried: what is freed would be given out again, to the next node."""


def rate(device: Any) -> float:
    """Copies a second from memory that is pinned by this node; the best of some, the first are of a link at rest."""
    HELD.append(torch.ones(TRIED // 8, dtype=torch.int64).pin_memory())
    there = torch.empty(TRIED // 8, dtype=torch.int64, device=device.torch)
    best_ms = float("inf")
    for _ in range(TRIES):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        there.copy_(HELD[-1], non_blocking=True)
        marks[1].record()
        torch.cuda.synchronize()
        best_ms = min(best_ms, marks[0].elapsed_time(marks[1]))
    return 1e3 / best_ms


# ---- copies ----------------------------------------------------------------------------------------------------------


class Way(NamedTuple):
    name: str
    size: int
    """Bytes of one copy, in each direction."""


class Host:
    """The memory that is copied from and to, of words that the host knows."""

    def __init__(self, child: Any, target: str, method: Any, device: Any, words: Any, cpus: str) -> None:
        self._child, self._target, self._method = child, target, method
        self._device, self._words, self._cpus = device, words, cpus
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []

    def case(self, way: Way) -> Callable[[Any, int], None]:
        return lambda part, number: self._measure(way, part, number)

    def _pinned(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """To send and to receive: of that pass alone, or an earlier one's where so much is held or there is no more."""
        room = self._method.Device("cpu").free_bytes() > 2 * WHOLE
        if len(self._held) <= min(number, MOST_HELD - 1) and (room or not self._held):
            sent, received = (torch.empty(WHOLE // 8, dtype=torch.int64, pin_memory=True) for _ in range(2))
            self._words.fill(sent)
            self._held.append((sent, received))
        return self._held[number % len(self._held)]

    def _measure(self, way: Way, part: Any, number: int) -> None:
        if part.seconds <= 0:
            raise self._method.NoTime("nothing left")
        sent, received = self._pinned(number)
        there, back = (torch.full((WHOLE // 8,), -1, dtype=torch.int64, device=self._device.torch) for _ in range(2))
        self._words.fill(back)
        received.fill_(-1)
        other = torch.cuda.Stream(self._device.number)
        calls, landed = directions(way, (sent, there), (back, received), other)
        streams = [other] if len(landed) > 1 else []
        seconds = self._method.seconds_of(calls, self._device, part, turns=WHOLE // way.size, streams=streams)
        self._say(way, seconds, landed)

    def _say(self, way: Way, seconds: Sequence[float], landed: Sequence[torch.Tensor]) -> None:
        wrong = sum(self._words.wrong(buffer) for buffer in landed)
        self._method.say(
            self._child,
            self._target,
            f"{way.name} {way.size // MIB} MiB",
            seconds=seconds,
            amount=float(len(landed) * way.size),
            unit="B",
            verified=not wrong,
            wrong=f"{wrong} words differ" if wrong else "",
            way=way.name,
            size_bytes=way.size,
            cpus=self._cpus,
        )


def directions(
    way: Way, out: tuple[torch.Tensor, torch.Tensor], home: tuple[torch.Tensor, torch.Tensor], other: Any
) -> tuple[Callable[[int], None], tuple[torch.Tensor, ...]]:
    """The call of one way, and where its words land; both ways at once use the stream `other` for the way home."""

    def copy(of: torch.Tensor, to: torch.Tensor, at: int) -> None:
        step = way.size // of.element_size()
        start = at * step % of.numel()
        to[start : start + step].copy_(of[start : start + step], non_blocking=True)

    def both(at: int) -> None:
        copy(*out, at)
        with torch.cuda.stream(other):
            copy(*home, at)

    if way.name == "to device":
        return lambda at: copy(*out, at), out[1:]
    if way.name == "to host":
        return lambda at: copy(*home, at), home[1:]
    return both, (out[1], home[1])
