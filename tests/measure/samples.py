"""Results of hosts that are not here, as `probe bench` would have made them: whole runs with real proportions."""

import math
import random
from collections.abc import Iterator
from itertools import product
from typing import Any

from probe.measure import limits
from probe.measure.model import SCHEMA, Bench, Condition, Done, Gpu, Program, Provenance, Result
from probe.measure.shares import ENTRIES
from probe.measure.summary import summarise
from probe.measure.text import size_name

KIB, MIB = 1 << 10, 1 << 20
MATMUL = {"bf16": 0.74, "fp16": 0.73, "tf32": 0.71, "fp32": 0.77}
"""Of the limit, at 8192."""
OPS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0, "broadcast": 1.0}
SIZES = [KIB << shift for shift in range(0, 23, 2)]


def h100(at: int = 0) -> Gpu:
    return Gpu(
        uuid=f"GPU-{at:08x}-6e1c-4b2a-9f0d-{at:012x}",
        name="NVIDIA H100 80GB HBM3",
        bus_id=f"00000000:{at + 0x19:02X}:00.0",
        sms=132,
        capability="9.0",
        memory_bytes=85520809984,
        max_sm_mhz=1980,
        max_memory_mhz=2619,
        memory_bus_bits=5120,
        power_limit_watts=700.0,
        pcie_generation=5,
        pcie_width=16,
        nvlinks=18,
        nvlink_gbps=25.0,
        nvlink_remotes=tuple(f"00000000:{0xC0 + link % 4:02X}:00.0" for link in range(18)),
    )


def provenance(gpus: int = 8) -> Provenance:
    return Provenance(
        device="cuda" if gpus else "cpu",
        machine=f"{gpus} x NVIDIA H100 80GB HBM3" if gpus else "Some CPU, 2 cores",
        cpu="Some CPU",
        cores=2,
        kernel="6.8.0",
        python="3.12",
        torch="2.11.0+cu130",
        torch_cuda="13.0",
        driver="580.159.04" if gpus else "",
        driver_cuda="13.0" if gpus else "",
        gpus=tuple(h100(at) for at in range(gpus)),
        workers=0 if gpus else 2,
    )


Case = tuple[str, str, str, float, float, str, dict[str, Any]]
"""Program, case, target, seconds of one call, amount, unit, data."""
PHASES = {
    "interpreter": 0.06,
    "import torch": 3.4,
    "cuInit": 0.25,
    "context": 0.11,
    "first kernel": 0.05,
    "first product": 0.09,
    "driver alone: init": 0.27,
    "driver alone: context": 0.11,
}
CHECKS = {"whole run": 2.8, "torch.import": 1.9, "torch.tensor": 0.5, "cuda.context": 0.3}


def cases(gpus: int) -> Iterator[Case]:
    """Those of a healthy host."""
    yield from (("startup", name, "", seconds, 1.0, "s", {}) for name, seconds in PHASES.items())
    yield from (("checks", name, "", seconds, 1.0, "s", {}) for name, seconds in CHECKS.items())
    for at in range(gpus):
        yield from of_one_gpu(h100(at))
    yield from between(gpus)


def of_one_gpu(gpu: Gpu) -> Iterator[Case]:
    for dtype, part in MATMUL.items():
        for size in (1024, 2048, 4096, 8192):
            rate = (limits.of_product(gpu, dtype).value or 1.0) * 1e12 * part * (size / 8192) ** 0.25
            flop = 2.0 * size**3
            yield "matmul", f"{dtype} {size}", gpu.target, flop / rate, flop, "FLOP", {"dtype": dtype, "size": size}
    for size in (64 * MIB, 256 * MIB, 1024 * MIB):
        yield "memory", f"copy {size // MIB} MiB", gpu.target, 2 * size / 2.98e12, 2.0 * size, "B", {"size_bytes": size}
    for way, rate, factor in (("to device", 55e9, 1.0), ("to host", 54e9, 1.0), ("both at once", 88e9, 2.0)):
        for size in (MIB, 16 * MIB, 256 * MIB):
            seconds, data = factor * size / rate + 8e-6, {"way": way, "size_bytes": size}
            yield "host", f"{way} {size // MIB} MiB", gpu.target, seconds, factor * size, "B", data


def between(gpus: int) -> Iterator[Case]:
    """One GPU of them is a little slower to reach than the others."""
    for a, b in ((a, b) for a in range(gpus) for b in range(gpus) if a != b):
        rate = 395e9 * (0.93 if 5 in (a, b) else 1.0)
        yield "peer", f"{a} to {b}", "", 256 * MIB / rate, 256.0 * MIB, "B", {"from": a, "to": b, "direct": True}
    for size, (op, factor) in product(SIZES if gpus > 1 else (), OPS.items()):
        bus = factor * (gpus - 1) / gpus if op != "broadcast" else 1.0
        seconds = 9e-6 + bus * size / (465e9 if op == "all_reduce" else 350e9)
        data = {"op": op, "size_bytes": size, "ranks": gpus, "time_s": seconds}
        yield "collective", f"{op} {size_name(size)}", "", seconds, bus * size, "B", data


def run(
    gpus: int = 8,
    *,
    seed: int = 1,
    noise: float = 0.01,
    samples: int = 15,
    passes: int = 8,
    between: float = 0.0,
    slower: dict[str, float] | None = None,
    drift: float = 0.0,
) -> Bench:
    """A whole run.

    `noise` is the scatter of a sample, `between` that of a pass, whose samples it makes faster or slower all together;
    `samples` are those of one pass. `slower`: by "program case" the factor on its seconds; `drift`: how much slower
    the last sample of each pass is than its first.
    """
    chance = random.Random(seed)  # noqa: S311 - noise, and the same at every run
    where = provenance(gpus)
    results = []
    for program, case, target, seconds, amount, unit, data in cases(gpus):
        factor = (slower or {}).get(f"{program} {case}", 1.0)
        times = []
        for _ in range(passes):
            pace = seconds * factor * math.exp(chance.gauss(0.0, between))
            times.append(
                [pace * max(0.01, chance.gauss(1.0, noise)) * (1 + drift * at / samples) for at in range(samples)]
            )
        made = summarise(times, amount, unit)
        results.append(
            Result(
                program,
                case,
                target,
                made.unit,
                made.median,
                made.p5,
                made.p95,
                made.n,
                limit=None,
                limit_source="",
                verified=None if program == "checks" else True,
                blocks=made.blocks,
                passes=made.passes,
                data=data,
            )
        )
    conditions = tuple(Condition(gpu.target, 345, 1755, 1980, 2619, 34, 58, 688.0, 1, 4, 0) for gpu in where.gpus)
    have = {result.program for result in results}
    programs = [
        Program(entry.name, Done.DONE, "", 10.0, 9.1, (), conditions)
        if entry.name in have
        else Program(entry.name, Done.SKIP, "needs two GPUs", 0.0, 0.0)
        for entry in ENTRIES
    ]
    return Bench(
        schema=SCHEMA,
        probe_version="0.1.0",
        host="node-17",
        started_at="2026-11-23T18:00:00.000+00:00",
        time_s=90.0,
        elapsed_s=78.4,
        exit_code=0,
        partial=False,
        notes=(),
        provenance=where,
        programs=tuple(programs),
        results=limits.with_limits(results, where),
    )
