"""A real GPU: what probe bench reports of a bf16 product, over a plain loop of torch.mm, and what differs run to run.

::

    plain loop, probe bench, plain loop, probe bench, ...       (alternating: a GPU that grows hot is so for both)

The plain loop is what people write: two random matrices, torch.mm between two CUDA events. probe's side is a whole
``probe bench --only matmul --only memory --only host`` of its own, by its JSON; the last figure is one default run.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.gpu import SETTLE_S
from bench.measure import Bench, Figure, Value, output, timed

OVER_PLAIN_BAR = 0.98
COPY_BAR = 0.88
SPREAD_BAR = 0.03
WHOLE_BAR_S = 90.0
ROUNDS = 3
STEADY = ("matmul", "memory", "host")
"""Whose medians are to agree from run to run; of the others the spread is reported."""
PLAIN = """
import torch, statistics
a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
for _ in range(200): torch.mm(a, b)
torch.cuda.synchronize()
times = []
for _ in range(200):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(); torch.mm(a, b); end.record()
    times.append((start, end))
torch.cuda.synchronize()
print(2 * 8192**3 / statistics.median(s.elapsed_time(e) for s, e in times) / 1e9)
"""


def measure(bench: Bench) -> list[Figure]:
    plain: list[float] = []
    runs: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        plain.append(float(output(bench.bare(PLAIN))))
        runs.append(run(bench, "--time", "45s", *(word for name in STEADY for word in ("--only", name))))
    ours = [of(found, "matmul", "bf16 8192")["median"] for found in runs]
    copies = [of(found, "memory", "copy 1024 MiB") for found in runs]
    part = [one["median"] / one["limit"] for one in copies if one["limit"]]
    samples = {"probe bench": ours, "plain loop": plain, "device copy": [one["median"] for one in copies]}
    values = (
        Value("bf16 8192: probe / plain loop", median(ours) / median(plain), "x", OVER_PLAIN_BAR, at_least=True),
        Value("device copy / datasheet", median(part or [0.0]), "x", copy_bar(runs[0]), at_least=True),
        *(Value(f"spread of {name}", spread(runs, name), "", SPREAD_BAR) for name in STEADY),
    )
    return [
        Figure("bench_gpu", "probe bench over a plain loop of torch.mm, and its medians run to run", values, samples),
        whole(bench),
    ]


def copy_bar(found: dict[str, Any]) -> float | None:
    return COPY_BAR if "H100" in found["provenance"]["machine"] else None


def whole(bench: Bench) -> Figure:
    """One default run, timed from outside."""
    took: list[float] = []
    found = run(bench, timing=took.append)
    missing = [one["program"] for one in found["programs"] if one["status"] == "fail"]
    assert not missing, found["programs"]
    skipped = tuple(f"{one['program']}: {one['reason']}" for one in found["programs"] if one["status"] == "skip")
    return Figure(
        "bench_whole", "one default probe bench", (Value("wall", took[0], "s", WHOLE_BAR_S),), {"s": took}, skipped
    )


def run(bench: Bench, *arguments: str, timing: Callable[[float], object] = lambda seconds: None) -> dict[str, Any]:
    """One run's result; every case of it was verified."""
    time.sleep(SETTLE_S)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        argv = [*bench.probe, "bench", "--state", str(bench.state), "--json", str(path), *arguments]
        timing(timed(argv))
        found: dict[str, Any] = json.loads(path.read_text())
    wrong = [one["case"] for one in found["results"] if one["verified"] is False]
    assert not wrong, wrong
    return found


def of(found: dict[str, Any], program: str, case: str) -> dict[str, Any]:
    return next(one for one in found["results"] if (one["program"], one["case"]) == (program, case))


def spread(runs: Sequence[dict[str, Any]], program: str) -> float:
    """The largest, over the cases of a program, of highest over lowest median less one."""
    medians: dict[tuple[str, str], list[float]] = {}
    for found in runs:
        for one in found["results"]:
            if one["program"] == program:
                medians.setdefault((one["case"], one["target"]), []).append(one["median"])
    return max((max(each) / min(each) - 1 for each in medians.values()), default=0.0)
