"""Collectives over all ranks, by size: all-reduce, all-gather, reduce-scatter, all-to-all, broadcast.

Sizes and bandwidths as nccl-tests defines them (its doc/PERFORMANCE.md), in fp32::

    size      all-reduce, broadcast, all-to-all: the buffer of a rank;  all-gather: what a rank receives, its own part
              included;  reduce-scatter: what a rank contributes
    algbw     size / time
    busbw     algbw x 2(n-1)/n  (all-reduce),  x (n-1)/n  (all-gather, reduce-scatter, all-to-all),  x 1  (broadcast)

Small messages are replayed as one CUDA graph of several calls, which leaves the launches out. Inputs are whole numbers,
so every sum is exact in any order; they are written anew before each sample, because an all-reduce in place grows.
After the timing one more call on fresh inputs is verified: every word of the result, on the device where that is
large and a part of it on the host, all of it on the host otherwise.

How far one run is from the next was measured between GPUs of one host: there each case has one long pass. Elsewhere
nobody knows it, and passes must tell: all cases are measured again and again while one fits well by what it took.

Every rank makes the same number of calls: rank 0 chooses. Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

KIB = 1 << 10
SIZES = {
    "cuda": tuple(KIB << shift for shift in (0, 10, 20, 2, 4, 6, 8, 12, 14, 16, 18, 22)),
    "cpu": tuple(KIB << shift for shift in (0, 10, 14, 4, 6, 8, 12)),
}
"""1 KiB to 4 GiB, in steps of four; through gloo to 16 MiB, from where on only the time grows. In the order of what is
missed most when time is short: the ends and the middle."""
GRAPH_BYTES = 1 << 20
"""Up to here launches would be most of the time (1 MiB over two H100: 56 GB/s by nccl-tests, 21 to 25 by torch)."""
GRAPH_CALLS = 10
"""In one sample: in place, over n ranks, an all-reduce makes the inputs n^10 times as large, which fp32 still holds."""
SAMPLE_S = {"cuda": 20e-3, "cpu": 1e-3}
"""The least that one sample lasts, of up to `GRAPH_CALLS` calls: ranks leave the barrier some 0.1 ms apart, and their
waiting for each other is in the first call (one of 1 GiB over two H100 takes 3.3 ms, and seemed 4 % slower alone)."""
MOST_SAMPLES = 100
FIRST_GUESS = {"cuda": 0.0, "cpu": 4e-9}
"""Seconds a byte of one sample and what is around it, until the first is measured: a loaded core does 0.25 GB/s."""
LATENCY_BYTES = 1 << 20
"""Below this the time is hardly that of the bytes."""
AROUND = 3
"""The calls and fills of a case beside its samples: warm-up and verification."""
PASSES = 3
"""With so many a run can be compared (`FEWEST_PASSES` of measure/summary.py): the samples of the first leave room."""
WHOLE_ON_HOST = 64 << 20
PERIOD = 1 << 18
"""Words after which the inputs repeat: what the host must know of them."""
MODULUS = 251
"""Inputs are 1 to 251, times 1 to 4 by the rank: sums over 16,000 ranks are exact in fp32's 24 bits."""


OVER, NOT_THIS, MEASURE = -1, 0, 1
"""What rank 0 chooses for a case: the share is used up, this one does not fit in what is left of it, or go."""


class Op(NamedTuple):
    name: str
    factor: Callable[[int], float]
    """busbw over algbw, of n ranks."""
    sent: Callable[[int, int], int]
    """Words that a rank contributes, of the words of `size` and n ranks."""
    received: Callable[[int, int], int]


OPS = (
    Op("all_reduce", lambda n: 2 * (n - 1) / n, lambda w, n: w, lambda w, n: w),
    Op("all_gather", lambda n: (n - 1) / n, lambda w, n: w // n, lambda w, n: w),
    Op("reduce_scatter", lambda n: (n - 1) / n, lambda w, n: w, lambda w, n: w // n),
    Op("all_to_all", lambda n: (n - 1) / n, lambda w, n: w, lambda w, n: w),
    Op("broadcast", lambda n: 1.0, lambda w, n: w, lambda w, n: w),
)


def main(child: Any, job: dict[str, Any], method: Any) -> None:
    device = method.open_device(child, job)
    clock = method.Clock(job["share_s"])
    group = child.load(job["group"]).join(child, job)
    sizes = dict.fromkeys(rounded(size, group.world) for size in SIZES[device.kind])
    cases = [(op, size) for size in sizes for op in OPS]
    once = device.is_cuda and "meet" not in job
    plan = Plan(1 if once else PASSES)

    def case(op: Op, size: int) -> Case:
        return Case(child, method, device, group, op, size, plan)

    took_s = first_pass(case, cases, clock)
    for _ in range(1, 1 if once else method.MOST_PASSES):
        for (op, size), one_s in list(took_s.items()):
            if not case(op, size).again(clock, len(took_s), one_s):
                del took_s[op, size]
    child.step("leaving the group")
    group.leave()


def first_pass(
    case: Callable[[Op, int], Case], cases: Sequence[tuple[Op, int]], clock: Any
) -> dict[tuple[Op, int], float]:
    """Measure each once, or leave it out; how long each took that was measured."""
    took_s = {}
    over = False
    for at, (op, size) in enumerate(cases):
        this, began = case(op, size), time.perf_counter()
        choice = OVER if over else this.run(clock, len(cases) - at)
        over = choice == OVER
        if over:
            this.leave_out("no time")
        if choice == MEASURE:
            took_s[op, size] = time.perf_counter() - began
    return took_s


class Plan:
    """What the cases of one group know of each other."""

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.costs: dict[str, float] = {}
        """By operation: seconds a byte of one sample and what is around it."""


def rounded(size: int, n: int) -> int:
    """A multiple of the ranks in words, as nccl-tests rounds it, with a word of each rank at least."""
    return max(1, size // 4 // n) * n * 4


class Case:
    """One operation at one size."""

    def __init__(self, child: Any, method: Any, device: Any, group: Any, op: Op, size: int, plan: Plan) -> None:
        self._child, self._method, self._device, self._group, self._plan = child, method, device, group, plan
        self.op = op
        self.words = size // 4
        self.size = size
        self.name = f"{op.name} {size_name(size)}"
        self._mine = self._pattern(group.rank, device.torch)

    def run(self, clock: Any, cases_left: int) -> int:
        """Measure it, or leave it out; what was chosen. `OVER` is for this case and all that follow."""
        self._child.step(self.name)
        part_s = clock.part(cases_left).seconds
        known = self._plan.costs.get(self.op.name, FIRST_GUESS[self._device.kind])
        holds = known * self.size * (self._method.FEWEST + AROUND) < clock.left_s() / 2
        choice = self.agree(OVER if not part_s else MEASURE if holds else NOT_THIS)
        if choice == NOT_THIS:
            self.leave_out("no time")
        if choice != MEASURE:
            return choice
        if not self._fits():
            self.leave_out("not enough memory")
            return NOT_THIS
        if not self._measure(clock, part_s):
            self.leave_out("no time")
            return NOT_THIS
        return MEASURE

    def again(self, clock: Any, cases: int, took_s: float) -> bool:
        """Measure it, one of so many, once more where that fits well by what it took before; whether it was.

        Where it was not it never will be: the time grows no longer.
        """
        self._child.step(self.name)
        part_s = clock.part(cases).seconds
        if self.agree(MEASURE if clock.left_s() > self._method.AGAIN * took_s else NOT_THIS) == NOT_THIS:
            return False
        return self._fits() and self._measure(clock, part_s)

    def _fits(self) -> bool:
        """Whether every rank has the memory for it."""
        need = 4 * (self.op.sent(self.words, self._group.world) + self.op.received(self.words, self._group.world))
        free = self._device.free_bytes() / (1 if self._device.is_cuda else self._group.world)
        return bool(self.agree(int(need < free), all_ranks=True))

    def _measure(self, clock: Any, part_s: float) -> bool:
        """Say a result of one pass; False where there was no time for it after all."""
        began = time.perf_counter()
        self._sent = torch.empty(self.op.sent(self.words, self._group.world), device=self._device.torch)
        self._got = torch.empty(self.op.received(self.words, self._group.world), device=self._device.torch)
        self._fill()
        call = self._call()
        seconds = self._time(call, part_s, clock)
        if seconds is None:
            return False
        self._fill()
        call()
        self._device.synchronize()
        spent_s = (time.perf_counter() - began) / (len(seconds) + AROUND)
        least_s = FIRST_GUESS[self._device.kind] / 10
        self._plan.costs[self.op.name] = max(least_s, spent_s / max(self.size, LATENCY_BYTES))
        self._say(seconds, self._wrong())
        return True

    def agree(self, number: int, *, all_ranks: bool = False) -> int:
        """What rank 0 says, or the least that any rank says: every rank must make the same calls."""
        word = torch.tensor([number], device=self._device.torch, dtype=torch.int64)
        if all_ranks:
            dist.all_reduce(word, dist.ReduceOp.MIN)
        else:
            dist.broadcast(word, 0)
        return int(word.item())

    def leave_out(self, why: str) -> None:
        if self._group.rank == 0:
            self._method.leave_out(self._child, "", self.name, why)

    # -- the call -----------------------------------------------------------------------------------------------------

    def _call(self) -> Callable[[], Any]:
        """The operation on this case's buffers; torch gave two of them new names in 2.13."""
        sent, got = self._sent, self._got
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": lambda: dist.all_reduce(got),
            "all_gather": lambda: gather(got, sent),
            "reduce_scatter": lambda: scatter(got, sent),
            "all_to_all": lambda: dist.all_to_all_single(got, sent),
            "broadcast": lambda: dist.broadcast(got, 0),
        }
        return calls[self.op.name]

    # -- timing -------------------------------------------------------------------------------------------------------

    def _time(self, call: Callable[[], Any], part_s: float, clock: Any) -> list[float] | None:
        """Seconds per call, a number a sample; None when rank 0 says that there is no time for it."""
        call()
        self._sample(call, 1)
        began = time.perf_counter()
        one_s = self._sample(call, 1)
        around_s = max(0.0, time.perf_counter() - began - one_s)
        in_graph = self._device.is_cuda and self.size <= GRAPH_BYTES
        calls = self.agree(GRAPH_CALLS if in_graph else self._calls(one_s))
        sample_s = one_s * calls + around_s
        fewest_s = self._method.FEWEST * sample_s
        # the patience is for what other cases left over: the last ones have no more than what is left
        fits = fewest_s < part_s * self._method.PATIENCE and fewest_s + AROUND * sample_s < clock.left_s()
        most = min(MOST_SAMPLES // self._plan.passes, int(0.7 * part_s / self._plan.passes / sample_s))
        samples = self.agree(max(self._method.FEWEST, most) if fits else 0)
        if not samples:
            return None
        if not in_graph:
            return [self._sample(call, calls) for _ in range(samples)]
        replay = self._method.graph_of(lambda: [call() for _ in range(calls)], capture_error_mode="thread_local")
        return [self._sample(replay, 1) / calls for _ in range(samples)]

    def _calls(self, one_s: float) -> int:
        """Of one sample that is no graph."""
        return max(1, min(GRAPH_CALLS, math.ceil(SAMPLE_S[self._device.kind] / max(one_s, 1e-7))))

    def _sample(self, call: Callable[[], Any], calls: int) -> float:
        """Seconds per call, of so many on fresh inputs that all ranks begin together."""
        self._fill()
        self._barrier()
        return self._stopwatch(call, calls)

    def _stopwatch(self, call: Callable[[], Any], calls: int) -> float:
        if self._device.is_cuda:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            marks[0].record()
            for _ in range(calls):
                call()
            marks[1].record()
            torch.cuda.synchronize()
            return float(marks[0].elapsed_time(marks[1])) / 1e3 / calls
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls

    def _barrier(self) -> None:
        """All ranks begin together: what one waits for another is not the operation's time."""
        self._device.synchronize()
        dist.barrier()
        self._device.synchronize()

    # -- the data -----------------------------------------------------------------------------------------------------

    def _pattern(self, rank: int, device: Any) -> torch.Tensor:
        """One period of the words of a rank."""
        base = torch.arange(PERIOD, dtype=torch.int64, device=device) * 7919 % MODULUS + 1
        return (base * (rank % 4 + 1)).to(torch.float32)

    def _fill(self) -> None:
        """Fresh inputs, and results that are not what they must become."""
        in_place = self.op.name in ("all_reduce", "broadcast")
        mine = self._got if in_place else self._sent
        self._got.fill_(-1.0)
        if self.op.name != "broadcast" or self._group.rank == 0:
            repeat(self._mine, mine)

    def _expected(self, device: Any) -> Callable[[int, int], torch.Tensor]:
        """What words `start` to `stop` of the result must be."""
        rank, n, words = self._group.rank, self._group.world, self.words
        patterns = [self._pattern(other, device) for other in range(min(n, 4))]
        total = sum(patterns[other % 4] for other in range(n))
        assert isinstance(total, torch.Tensor)
        part = words // n

        def expected(start: int, stop: int) -> torch.Tensor:
            at = torch.arange(start, stop, device=device)
            if self.op.name == "all_reduce":
                return total[at % PERIOD]
            if self.op.name == "broadcast":
                return patterns[0][at % PERIOD]
            if self.op.name == "reduce_scatter":
                return total[(at + rank * part) % PERIOD]
            whose, offset = at // part, at % part
            if self.op.name == "all_to_all":
                offset = offset + rank * part
            stacked = torch.stack(patterns)
            return stacked[whose % 4, offset % PERIOD]

        return expected

    def _wrong(self) -> int:
        """How many words of the result are wrong."""
        got = self._got
        on_host, on_device = self._expected(torch.device("cpu")), self._expected(got.device)
        host_words = got.numel() if got.numel() * 4 <= WHOLE_ON_HOST else PERIOD
        count = 0
        for start in range(0, got.numel(), PERIOD):
            stop = min(start + PERIOD, got.numel())
            if start < host_words or stop == got.numel():
                count += int(torch.count_nonzero(got[start:stop].cpu() != on_host(start, stop)))
            else:
                count += int(torch.count_nonzero(got[start:stop] != on_device(start, stop)))
        return count

    def _say(self, seconds: list[float], wrong: int) -> None:
        self._method.say(
            self._child,
            "",
            self.name,
            seconds=seconds,
            amount=self.op.factor(self._group.world) * self.size,
            unit="B",
            verified=not wrong,
            wrong=f"{wrong} words differ on rank {self._group.rank}" if wrong else "",
            op=self.op.name,
            size_bytes=self.size,
            ranks=self._group.world,
            bus_factor=self.op.factor(self._group.world),
        )


def repeat(pattern: torch.Tensor, into: torch.Tensor) -> None:
    whole = into.numel() // PERIOD * PERIOD
    if whole:
        into[:whole].view(-1, PERIOD).copy_(pattern)
    into[whole:] = pattern[: into.numel() - whole]


def size_name(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >> shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"
