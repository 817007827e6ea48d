"""Several GPUs: the all-reduce that probe bench reports, over a bare torch.distributed script timed with events.

::

    bare script, probe bench --only collective, bare script, ...       (alternating)

The bare script is what people write: torchrun, a loop of ``dist.all_reduce`` between two CUDA events. Large messages
must be as fast there as here; small ones are faster here, where launches are left out (CUDA graphs), which is what
nccl-tests measures and torch alone does not.
"""

import json
import re
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.bench_gpu import of
from bench.gpu import SETTLE_S
from bench.measure import TOO_LONG_S, Bench, Figure, Value, gpus, output, timed

LARGE_BAR = 0.98
SMALL_BAR = 1.5
ROUNDS = 3
CASES = {"1 GiB": 1 << 30, "1 MiB": 1 << 20}
PROGRAM = """
import os, statistics, torch, torch.distributed as dist
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl", device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])))
n = dist.get_world_size()
for size in (1 << 30, 1 << 20):
    x = torch.randn(size // 4, device="cuda")
    for _ in range(20): dist.all_reduce(x)
    torch.cuda.synchronize()
    times = []
    for _ in range(10):
        x.normal_()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        for _ in range(10): dist.all_reduce(x)
        marks[1].record()
        torch.cuda.synchronize()
        times.append(marks[0].elapsed_time(marks[1]) / 10 / 1e3)
    if dist.get_rank() == 0:
        print("busbw", size, size * 2 * (n - 1) / n / statistics.median(times) / 1e9)
dist.destroy_process_group()
"""


def measure(bench: Bench) -> Figure:
    bare: dict[str, list[float]] = {case: [] for case in CASES}
    ours: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(ROUNDS):
        for case, rate in script(bench).items():
            bare[case].append(rate)
        found = collectives(bench)
        for case in CASES:
            ours[case].append(of(found, "collective", f"all_reduce {case}")["median"])
    values = tuple(
        Value(f"{case}: probe / bare script", median(ours[case]) / median(bare[case]), "x", bar, at_least=True)
        for case, bar in zip(CASES, (LARGE_BAR, SMALL_BAR), strict=True)
    )
    samples = {f"{side} {case}": each[case] for side, each in (("bare", bare), ("probe", ours)) for case in CASES}
    notes = tuple(f"{name}: busbw {median(rates):.1f} GB/s" for name, rates in samples.items())
    what = f"all-reduce over {len(gpus())} GPUs, busbw over a bare torch.distributed script's"
    return Figure("all_reduce", what, values, samples, notes)


def script(bench: Bench) -> dict[str, float]:
    """Busbw of each case in GB/s."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bare.py"
        path.write_text(PROGRAM)
        argv = [bench.python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(gpus())}"]
        said = output([*argv, str(path)])
    rates = {int(size): float(rate) for size, rate in re.findall(r"^busbw (\d+) ([\d.]+)$", said, re.MULTILINE)}
    return {case: rates[size] for case, size in CASES.items()}


def collectives(bench: Bench) -> dict[str, Any]:
    time.sleep(SETTLE_S)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        only = ["--only", "collective", "--time", "35s"]
        timed([*bench.probe, "bench", "--state", str(bench.state), "--json", str(path), *only])
        found: dict[str, Any] = json.loads(path.read_text())
    assert not [one["case"] for one in found["results"] if one["verified"] is False]
    assert found["elapsed_s"] < TOO_LONG_S
    return found
