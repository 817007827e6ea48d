"""Copies between every ordered pair: GPU to GPU in one process, or, on CPUs, worker to worker through gloo.

::

    GPUs   one process sees them all:  pair (a, b), (b, a), ...     one after another
    CPUs   rank 0 .. n-1, one process each: the sender of a pair times, the others wait at the store

Every word that arrived is compared on the host. Standard library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import time
from typing import Any

import torch

MIB = 1 << 20
SIZES = {"cuda": 256 * MIB, "cpu": 16 * MIB}
SMALL_SIZE = 16 * MIB
"""Where the large one does not fit beside what is on the GPU."""


def main(child: Any, job: dict[str, Any], method: Any) -> None:
    if job["device"] == "cpu":
        between_workers(child, job, method)
    else:
        between_gpus(child, job, method)


def pairs(count: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(count) for b in range(count) if a != b]


def between_gpus(child: Any, job: dict[str, Any], method: Any) -> None:
    clock = method.Clock(job["share_s"])
    words = method.Words(seed=job["seed"])
    count = int(job["world"])
    method.open_device(child, {**job, "index": 0})
    devices = [method.Device("cuda", index) for index in range(count)]
    size = SIZES["cuda"]
    if min(device.free_bytes() for device in devices) < 3 * size:
        size = SMALL_SIZE
    sent, arrived = [], []
    for device in devices:
        torch.cuda.set_device(device.number)
        sent.append(torch.empty(size // 8, dtype=torch.int64, device=device.torch))
        arrived.append(torch.empty_like(sent[-1]))
        words.fill(sent[-1])
    todo = pairs(count)
    for at, (a, b) in enumerate(todo):
        case = f"{a} to {b}"
        child.step(case)
        torch.cuda.set_device(a)
        arrived[b].fill_(-1)
        torch.cuda.synchronize(b)
        try:
            part = clock.part(len(todo) - at)
            seconds = method.seconds_of(
                lambda _, a=a, b=b: arrived[b].copy_(sent[a], non_blocking=True),
                devices[a],
                part._replace(seconds=min(0.3, part.seconds)),
                lead_s=0.05,
                graphs=False,
            )
        except method.NoTime:
            method.leave_out(child, "", case, "no time")
            continue
        direct = bool(torch.cuda.can_device_access_peer(a, b))
        report(child, method, words, case, seconds, size, arrived[b], {"from": a, "to": b, "direct": direct})


def report(
    child: Any, method: Any, words: Any, case: str, seconds: Any, size: int, arrived: torch.Tensor, axes: dict[str, Any]
) -> None:
    wrong = words.wrong(arrived)
    method.say(
        child,
        "",
        case,
        seconds=seconds,
        amount=float(size),
        unit="B",
        verified=not wrong,
        wrong=f"{wrong} words differ" if wrong else "",
        size_bytes=size,
        **axes,
    )


def between_workers(child: Any, job: dict[str, Any], method: Any) -> None:
    import torch.distributed as dist

    group = child.load(job["group"]).join(child, job)
    rank, count, size = job["rank"], int(job["world"]), SIZES["cpu"]
    clock = method.Clock(job["share_s"])
    words = method.Words(seed=job["seed"])
    sent = torch.empty(size // 8, dtype=torch.int64)
    arrived = torch.empty_like(sent)
    words.fill(sent)
    receipt = torch.zeros(1)
    todo = pairs(count)
    for at, (a, b) in enumerate(todo):
        case = f"{a} to {b}"
        child.step(case)
        samples = group.agree(f"pair {case}", lambda at=at: how_many(method, clock.part(len(todo) - at).seconds, size))
        seconds = []
        arrived.fill_(-1)
        for _ in range(samples + 1 if samples else 0):
            began = time.perf_counter()
            if rank == a:
                dist.send(sent, b)
                dist.recv(receipt, b)  # it has all arrived, not just left
            elif rank == b:
                dist.recv(arrived, a)
                dist.send(receipt, a)
            seconds.append(time.perf_counter() - began)
        if not samples:
            if rank == 0:
                method.leave_out(child, "", case, "no time")
        elif rank == a:
            group.wait(f"checked {case}")
            wrong = group.told(f"wrong {case}")
            method.say(
                child,
                "",
                case,
                seconds=seconds[1:],
                amount=float(size),
                unit="B",
                verified=wrong == "0",
                wrong="" if wrong == "0" else f"{wrong} words differ",
                size_bytes=size,
                **{"from": a, "to": b, "direct": False},
            )
        elif rank == b:
            group.tell(f"wrong {case}", str(words.wrong(arrived)))
            group.tell(f"checked {case}", "1")
    group.leave()


def how_many(method: Any, part_s: float, size: int) -> int:
    """At the 0.5 GB/s that a loaded 2-core machine still does."""
    fit = int(part_s / (size / 5e8))
    return 0 if fit < method.FEWEST else min(20, fit)
