"""Copies within one device's memory: what is read and what is written both count, as in the datasheet's rate.

Every word is random, known to the host, and compared there after the timing, each. Standard library and torch only,
Python >= 3.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MIB = 1 << 20
SIZES = {"cuda": (1024 * MIB, 256 * MIB, 64 * MIB), "cpu": (16 * MIB, 64 * MIB, 256 * MIB)}
"""Of one buffer. With its copy each is larger than the cache, or takes turns with others so that all together are."""


def main(child: Any, job: dict[str, Any], method: Any) -> None:
    target = job["target"]
    clock = method.Clock(job["share_s"])
    device = method.open_device(child, job, target)
    words = method.Words(seed=job["seed"])

    def case(name: str, size: int) -> Callable[[Any, int], None]:
        def measure(part: Any, _: int) -> None:
            clock.begin(size)
            clock.end(one(child, target, method, device, words, name, size, part))

        return measure

    named = {f"copy {size // MIB} MiB": size for size in SIZES[device.kind]}
    method.in_turn(child, target, clock, {name: case(name, size) for name, size in named.items()})


def one(child: Any, target: str, method: Any, device: Any, words: Any, case: str, size: int, part: Any) -> float:
    """The seconds that sampling took, nearly."""
    count = method.sets_beyond_cache(device, 2 * size)
    if 2 * size * count > device.free_bytes():
        raise RuntimeError("out of memory")
    if part.seconds <= 0:
        raise method.NoTime("nothing left")
    sources = [torch.empty(size // 8, dtype=torch.int64, device=device.torch) for _ in range(count)]
    copies = [torch.full_like(source, -1) for source in sources]
    for source in sources:
        words.fill(source)

    def call(at: int) -> None:
        copies[at % count].copy_(sources[at % count])

    seconds: list[float] = method.seconds_of(call, device, part, turns=count)
    wrong = sum(words.wrong(copy) for copy in copies)
    method.say(
        child,
        target,
        case,
        seconds=seconds,
        amount=2.0 * size,
        unit="B",
        verified=not wrong,
        wrong=f"{wrong} words differ" if wrong else "",
        size_bytes=size,
        buffers=count,
    )
    return sum(seconds)
