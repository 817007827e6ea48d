"""How every program times: passes over its cases, a lead-in, device events, whole samples, and a share of time.

::

    pass 1: case a, case b, case c      pass 2: a, b, c      ...        `in_turn`: while there is time

    warm up ----> one call takes about t ----> calls per sample, samples
                  (GPU: t < LAUNCH_BOUND_S: the calls of a sample become one CUDA graph)
    lead-in: call call call ... |event| call call call |event| call call call |event|       `seconds_of`, in each pass
                                      seconds per call, one number a sample

A case that is measured once, within tenths of a second, is as fast as its moment: passes spread it over the program's
time, with other buffers each. On a GPU the clock is the device's (CUDA events), and the host is ahead of it by the
lead-in, so that no launch is in a sample; small work, which the host cannot be ahead of, is replayed as a graph. On a
CPU the clock is `time.perf_counter`. Over 300 lines because it is the one file that every program is given.
Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

SAMPLE_S = 1e-3
"""The least that one sample lasts: a graph begins some microseconds after the event before it, which would be percents
of a shorter one and are not the same in every run."""
LAUNCH_BOUND_S = 1e-4
"""Below this the host may not be ahead of the GPU: a call of torch costs it 5 to 10 us, more on a busy host."""
MOST_GRAPH_CALLS = 256
WARM_UP_S = 0.05
"""Until it is known what one call takes: cuBLAS loads its kernels at the first."""
LEAD_S = 0.15
"""The same work right before the first sample, without a pause: clocks rise within tens of milliseconds and the power
cap takes hold, and the host is so far ahead that a pause of its own is in no sample."""
PASS_S = 0.2
"""Of samples of one case in one pass."""
FEWEST, MOST = 5, 200
"""Samples of one case in one pass. With fewer there is no 5th percentile to speak of; more says nothing new."""
MOST_PASSES = 8
"""So that a long `--time` does not heat the machine for nothing."""
AGAIN = 2.0
"""What is left must hold so many times the longest that a case took before: on a busy machine the next takes longer,
and whoever is not done in time is killed."""
PATIENCE = 4.0
"""A case may take so many times its part of the share: the parts of those that took less have made room."""
MOST_S = 1.0
"""Of one case, at once."""
CACHE_BYTES = 64 << 20
"""Where the cache's size is not known: more than the L2 of an H100 (50 MiB). Of a CPU's last cache no more is counted:
it is shared by more cores than ours, and a few of its cores' worth of memory must be enough."""


class NoTime(Exception):
    """What is left of the share does not hold this case."""


class Clock:
    """The share of one program: seconds from its own start, never a clock's value from another process."""

    def __init__(self, share_s: float) -> None:
        self._until = time.perf_counter() + share_s
        self._cost = 0.0
        self._amount = 0.0
        self._began = 0.0

    def begin(self, amount: float) -> None:
        """A case of so much (bytes, say) begins; raises NoTime where by what the last one cost it does not fit."""
        if self.left_s() <= self._cost * amount:
            raise NoTime("by what the case before took")
        self._amount, self._began = amount, time.perf_counter()

    def end(self, sampled_s: float) -> None:
        """It has ended; what was not sampling is what a case costs in any case: buffers, warm-up, verification."""
        self._cost = max(0.0, time.perf_counter() - self._began - sampled_s) / self._amount

    def left_s(self) -> float:
        return max(0.0, self._until - time.perf_counter())

    def part(self, cases_left: int) -> Part:
        """Of one of so many cases."""
        return Part(min(MOST_S, self.left_s() / max(1, cases_left)), self._until)


class Part(NamedTuple):
    """What one case may take of a share."""

    seconds: float
    """What it is meant to take; 0 where nothing is left."""
    until: float
    """When the share ends, by `time.perf_counter`."""

    def most_s(self) -> float:
        """What may be planned from now on: `PATIENCE`, and never more than is left of the share."""
        return min(self.seconds * PATIENCE, self.until - time.perf_counter())


def in_turn(child: Any, target: str, clock: Clock, cases: Mapping[str, Callable[[Part, int], None]]) -> None:
    """Measure every case once, then all of them again and again while one fits well by what it took before.

    A case is given its part of the time and the number of its pass, and says a result of each pass; whoever takes them
    joins the samples. What a first pass cannot measure is left out.
    """
    took_s: dict[str, float] = {}
    for number in range(MOST_PASSES):
        for at, (name, measure) in enumerate(cases.items()):
            if number and clock.left_s() < AGAIN * took_s.get(name, math.inf):
                continue
            child.step(name, target)
            began = time.perf_counter()
            try:
                measure(clock.part(1 if number else len(cases) - at), number)
                took_s[name] = max(took_s.get(name, 0.0), time.perf_counter() - began)
            except (NoTime, RuntimeError) as error:
                if not isinstance(error, NoTime) and not out_of_memory(error):
                    raise
                if not number:
                    leave_out(child, target, name, "no time" if isinstance(error, NoTime) else "not enough memory")
                took_s.pop(name, None)
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()  # the next pass has its buffers elsewhere


class Device(NamedTuple):
    """What is measured on."""

    kind: str
    """"cuda" or "cpu"."""
    number: int = 0

    @property
    def torch(self) -> torch.device:
        return torch.device(self.kind, self.number) if self.kind == "cuda" else torch.device("cpu")

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.number)

    def cache_bytes(self) -> int:
        """Of the last cache before memory."""
        if self.is_cuda:
            return int(getattr(torch.cuda.get_device_properties(self.number), "L2_cache_size", 0)) or CACHE_BYTES
        try:
            with open("/sys/devices/system/cpu/cpu0/cache/index3/size") as file:
                return min(int(file.read().strip().rstrip("K")) << 10, CACHE_BYTES)
        except (OSError, ValueError):
            return CACHE_BYTES

    def free_bytes(self) -> int:
        """What may be allocated, with a tenth left alone."""
        if self.is_cuda:
            return int(torch.cuda.mem_get_info(self.number)[0] * 0.9)
        return int(min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), cgroup_free_bytes()) * 0.5)


def cgroup_free_bytes(groups: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """What the container may take yet, by its cgroup and those above it; infinite where none bounds it.

    Whoever takes more is killed, however much the host has. Page cache that the kernel would give up counts as free.
    """
    free = math.inf
    try:
        with open(own) as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return free
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            mount, limit, used, cache = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit, used = groups + "/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for end in range(len(parts) + 1):
            folder = "/".join([mount, *parts[:end]])
            try:
                most, now = (int(read(folder, name)) for name in (limit, used))
                kept = dict(line.split() for line in read(folder, "memory.stat").splitlines())
                free = min(free, most - max(0, now - int(kept.get(cache, 0))))
            except (OSError, ValueError):
                continue  # no such file here, or "max"
    return max(0.0, free)


def read(folder: str, name: str) -> str:
    with open(os.path.join(folder, name)) as file:
        return file.read().strip()


def open_device(child: Any, job: dict[str, Any], target: str = "") -> Device:
    """The device of this process, with what it says of itself as the record "device"."""
    if job["device"] == "cpu":
        torch.set_num_threads(int(job.get("threads", 1)))
        child.say("device", target, threads=torch.get_num_threads())
        return Device("cpu")
    index = int(job.get("index", 0))
    child.step("cuda context", target)
    torch.cuda.set_device(index)
    torch.zeros(1, device="cuda").item()
    properties = torch.cuda.get_device_properties(index)
    child.say(
        "device",
        target,
        name=properties.name,
        sms=properties.multi_processor_count,
        capability="{}.{}".format(*torch.cuda.get_device_capability(index)),
        l2_bytes=int(getattr(properties, "L2_cache_size", 0)),
        memory_bytes=properties.total_memory,
    )
    return Device("cuda", index)


def seconds_of(
    call: Callable[[int], Any],
    device: Device,
    part: Part,
    *,
    lead_s: float = LEAD_S,
    graphs: bool = True,
    turns: int = 1,
    streams: Sequence[Any] = (),
) -> list[float]:
    """Seconds per call, a number a sample; `call` is given a running number, for `turns` buffers that take turns.

    Every buffer has had its turn when this returns. Without `graphs`, small work is not captured: work on two GPUs
    cannot be. `streams`: where else `call` puts work; a sample is over when it is done there too. Raises NoTime where
    `part` does not hold `FEWEST` samples.
    """
    work = Work(call, streams)
    one_s = warm_up(work, device, min(WARM_UP_S, part.seconds / 6), turns)
    if one_s * FEWEST > part.most_s():
        raise NoTime(f"{FEWEST} samples of {one_s:.3f} s do not fit in {part.seconds:.2f} s")
    calls = max(1, math.ceil(SAMPLE_S / one_s))
    in_graph = graphs and device.is_cuda and one_s < LAUNCH_BOUND_S
    if in_graph:
        calls = min(MOST_GRAPH_CALLS, max(calls, turns))
    sample_s = one_s * calls
    leads = int(min(lead_s, part.seconds / 6) / sample_s)
    samples = max(FEWEST, min(MOST, int(min(PASS_S, part.seconds * 0.7) / sample_s)))
    if in_graph:
        replay = graph_of(lambda: work.do(0, calls))
        return [seconds / calls for seconds in events(Work(lambda _: replay()), device, leads, samples, 1)]
    return events(work, device, leads, samples, calls) if device.is_cuda else by_clock(work, leads, samples, calls)


class Work(NamedTuple):
    """One call after another, on the current stream and on others beside it."""

    call: Callable[[int], Any]
    streams: Sequence[Any] = ()

    def do(self, start: int, calls: int) -> None:
        """The streams part before these calls and meet after them, not at each: meeting costs some microseconds."""
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream())
        for at in range(start, start + calls):
            self.call(at)
        for stream in self.streams:
            torch.cuda.current_stream().wait_stream(stream)


def warm_up(work: Work, device: Device, seconds: float, turns: int = 1) -> float:
    """Call for about so long, at least `turns` times; how long one call takes, by the host's clock over the last calls.

    The first call is not counted: it loads kernels, and may take a hundred times as long.
    """
    work.do(0, 1)
    device.synchronize()
    began, done, batch = time.perf_counter(), 1, 1
    while True:
        start = time.perf_counter()
        work.do(done, batch)
        device.synchronize()
        now = time.perf_counter()
        done += batch
        one_s = max((now - start) / batch, 1e-9)
        if done >= turns and now - began + 2 * batch * one_s > seconds:
            return one_s
        batch *= 2


def events(work: Work, device: Device, leads: int, samples: int, calls: int) -> list[float]:
    """Seconds per call by CUDA events: one before the first sample and one after each.

    Nothing waits between the lead-in, of as many calls as `leads` samples, and the first event.
    """
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(samples + 1)]
    device.synchronize()
    work.do(0, leads * calls)
    for at, mark in enumerate(marks):
        if at:
            work.do((leads + at - 1) * calls, calls)
        mark.record()
    device.synchronize()
    return [before.elapsed_time(after) / 1e3 / calls for before, after in zip(marks, marks[1:])]


def by_clock(work: Work, leads: int, samples: int, calls: int) -> list[float]:
    found = []
    for at in range(leads + samples):
        began = time.perf_counter()
        work.do(at * calls, calls)
        found.append((time.perf_counter() - began) / calls)
    return found[leads:]


def graph_of(work: Callable[[], Any], **options: Any) -> Callable[[], None]:
    """`work` as one CUDA graph; what is captured must not allocate, and has run before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, **options):
        work()
    replay: Callable[[], None] = graph.replay
    replay()
    torch.cuda.synchronize()
    return replay


def sets_beyond_cache(device: Device, bytes_each: int, most: int = 64) -> int:
    """How many sets of buffers must take turns so that none is still in the cache when its turn comes again."""
    return max(1, min(most, math.ceil(2 * device.cache_bytes() / max(1, bytes_each))))


# ---- words to copy ---------------------------------------------------------------------------------------------------

BLOCK_WORDS = 1 << 20
"""8 MiB of random words on the host, of which every larger buffer is made: with another xor for each repetition."""


class Words:
    """Buffers of random 64-bit words whose every word the host knows: none is zero for long, none compresses."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._block = torch.randint(-(2**63), 2**63 - 1, (BLOCK_WORDS,), dtype=torch.int64, generator=generator)

    def fill(self, words: torch.Tensor) -> None:
        """Make `words` (int64, any length, on any device) what `wrong` expects."""
        block = self._block.to(words.device)
        for start in range(0, words.numel(), BLOCK_WORDS):
            part = words[start : start + BLOCK_WORDS]
            torch.bitwise_xor(block[: part.numel()], start * ODD, out=part)

    def wrong(self, words: torch.Tensor) -> int:
        """How many differ, compared on the host, each."""
        count = 0
        for start in range(0, words.numel(), BLOCK_WORDS):
            part = words[start : start + BLOCK_WORDS].cpu()
            count += int(torch.count_nonzero(part != (self._block[: part.numel()] ^ (start * ODD))))
        return count


ODD = 0x9E3779B1
"""2^32 over the golden ratio, odd: the xor of no two repetitions is the same."""


def say(
    child: Any,
    target: str,
    case: str,
    *,
    seconds: Sequence[float],
    amount: float,
    unit: str,
    verified: bool,
    wrong: str = "",
    **data: Any,
) -> None:
    """One case: seconds per call, and how much of `unit` (FLOP, B or s) one call does."""
    rounded = [float(f"{value:.7g}") for value in seconds]
    child.say(
        "result", target, text=wrong, case=case, seconds=rounded, amount=amount, unit=unit, verified=verified, data=data
    )


def leave_out(child: Any, target: str, case: str, why: str) -> None:
    child.say("left", target, text=why, case=case)


def out_of_memory(error: BaseException) -> bool:
    return "out of memory" in str(error)
