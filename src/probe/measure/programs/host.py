"""Copies between pinned host memory and one GPU: there, back, and both ways at once.

The process first moves to the CPUs beside the GPU: memory pinned on another socket is reached over the link between
them, which is not what is to be measured. Every word that went there and back is compared on the host. Standard
library and torch only, Python >= 3.9.
"""

from __future__ import annotations

import os
from typing import Any

import torch

MIB = 1 << 20
SIZES = (256 * MIB, 16 * MIB, 1 * MIB)


def main(child: Any, job: dict[str, Any], method: Any) -> None:
    target = job["target"]
    cpus = move_beside(job.get("bus_id", ""))
    clock = method.Clock(job["share_s"])
    device = method.open_device(child, job, target)
    words = method.Words(seed=job["seed"])
    for at, size in enumerate(SIZES):
        child.step(f"{size // MIB} MiB", target)
        try:
            one(child, target, method, device, words, size, clock.left_s() / (len(SIZES) - at), cpus)
        except method.NoTime:
            method.leave_out(child, target, f"{size // MIB} MiB", "no time")
        except RuntimeError as error:
            if not method.out_of_memory(error):
                raise
            method.leave_out(child, target, f"{size // MIB} MiB", "not enough memory")


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


def one(child: Any, target: str, method: Any, device: Any, words: Any, size: int, left_s: float, cpus: str) -> None:
    sent, received = (torch.empty(size // 8, dtype=torch.int64, pin_memory=True) for _ in range(2))
    words.fill(sent)
    received.fill_(-1)
    there = torch.full((size // 8,), -1, dtype=torch.int64, device=device.torch)
    back = torch.full_like(there, -1)
    other = torch.cuda.Stream(device.number)

    def both(_: int) -> None:
        main_stream = torch.cuda.current_stream(device.number)
        other.wait_stream(main_stream)
        there.copy_(sent, non_blocking=True)
        with torch.cuda.stream(other):
            received.copy_(back, non_blocking=True)
        main_stream.wait_stream(other)

    def one_way(case: str, factor: int, call: Any, landed: tuple[torch.Tensor, ...]) -> None:
        for buffer in landed:
            buffer.fill_(-1)
        seconds = method.seconds_of(call, device, part_s)
        wrong = sum(words.wrong(buffer) for buffer in landed)
        method.say(
            child,
            target,
            f"{case} {size // MIB} MiB",
            seconds=seconds,
            amount=float(factor * size),
            unit="B",
            verified=not wrong,
            wrong=f"{wrong} words differ" if wrong else "",
            way=case,
            size_bytes=size,
            cpus=cpus,
        )

    part_s = min(method.MOST_S, left_s / 4)
    one_way("to device", 1, lambda at: there.copy_(sent, non_blocking=True), (there,))
    back.copy_(there)
    one_way("to host", 1, lambda at: received.copy_(back, non_blocking=True), (received,))
    one_way("both at once", 2, both, (there, received))
