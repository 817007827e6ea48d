"""A real GPU: what probe bench reports of a bf16 product, over a plain loop of torch.mm, and what differs run to run.

::

    plain loop, probe bench, plain loop, probe bench, ...       (alternating: a GPU that grows hot is so for both)

The plain loop is what people write: two random matrices, torch.mm between two CUDA events. probe's side is a whole
default run, by its JSON; the last figure is how long the slowest of them took. Every median of every run is kept.
Host copies are made once before all that: memory that a virtual machine touches for the first time is slower.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.gpu import SETTLE_S
from bench.measure import Bench, Figure, Value, output, timed

OVER_PLAIN_BAR = 0.98
COPY_BAR = 0.88
SPREAD_BAR_PERCENT = 3.0
WHOLE_BAR_S = 90.0
ROUNDS = 3
STEADY = ("matmul", "memory", "host", "peer")
"""Products and copies: their medians are to agree from run to run."""
OTHERS = ("startup", "checks", "collective")
"""Of these the spread is reported."""
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
    took_s: list[float] = []
    runs: list[dict[str, Any]] = []
    run(bench, "--only", "host", "--time", "25s")  # as `rounds` does: once, uncounted
    for _ in range(ROUNDS):
        plain.append(float(output(bench.bare(PLAIN))))
        runs.append(run(bench, timing=took_s.append))
    ours = [of(found, "matmul", "bf16 8192")["median"] for found in runs]
    copies = [of(found, "memory", "copy 1024 MiB") for found in runs]
    part = [one["median"] / one["limit"] for one in copies if one["limit"]]
    have = {one["program"] for one in runs[0]["results"]}
    spreads = {name: spread(runs, name) for name in (*STEADY, *OTHERS) if name in have}
    every = {f"{name} {case}": each for name in spreads for case, each in medians(runs, name).items()}
    samples = {"probe bench": ours, "plain loop": plain, **every}
    values = (
        Value("bf16 8192: probe / plain loop", median(ours) / median(plain), "x", OVER_PLAIN_BAR, at_least=True),
        Value("device copy / datasheet", median(part or [0.0]), "x", copy_bar(runs[0]), at_least=True),
        *(
            Value(f"spread of {name}", worst.percent, "%", SPREAD_BAR_PERCENT if name in STEADY else None)
            for name, worst in spreads.items()
        ),
    )
    notes = tuple(f"{name} differs most in {worst}" for name, worst in spreads.items())
    what = "probe bench over a plain loop of torch.mm, and its medians run to run"
    return [Figure("bench_gpu", what, values, samples, notes), whole(runs, took_s)]


def copy_bar(found: dict[str, Any]) -> float | None:
    return COPY_BAR if "H100" in found["provenance"]["machine"] else None


def whole(runs: Sequence[dict[str, Any]], took_s: Sequence[float]) -> Figure:
    """The default runs, timed from outside; what the last of them did with its time."""
    programs = runs[-1]["programs"]
    notes = tuple(
        f"{one['program']}: {one['reason']}" if one["status"] == "skip" else f"{one['program']}: {one['elapsed_s']} s"
        for one in programs
    )
    return Figure(
        "bench_whole",
        "a default probe bench",
        (Value("wall, the slowest", max(took_s), "s", WHOLE_BAR_S),),
        {"s": took_s},
        notes,
    )


def run(bench: Bench, *arguments: str, timing: Callable[[float], object] = lambda _: None) -> dict[str, Any]:
    """The result of one run, by default a default one; it failed in no program, and every case of it was verified."""
    time.sleep(SETTLE_S)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.json"
        argv = [*bench.probe, "bench", "--state", str(bench.state), "--json", str(path), *arguments]
        timing(timed(argv))
        found: dict[str, Any] = json.loads(path.read_text())
    wrong = [one["case"] for one in found["results"] if one["verified"] is False]
    assert not wrong, wrong
    assert not [one for one in found["programs"] if one["status"] == "fail"], found["programs"]
    return found


def of(found: dict[str, Any], program: str, case: str) -> dict[str, Any]:
    return next(one for one in found["results"] if (one["program"], one["case"]) == (program, case))


class Worst(NamedTuple):
    """The case of a program whose medians differ most."""

    percent: float = 0.0
    """Of the highest over the lowest."""
    case: str = "none"
    medians: Sequence[float] = ()

    def __str__(self) -> str:
        return f"{self.case}: {self.percent:.1f} % ({', '.join(f'{one:g}' for one in self.medians)})"


def spread(runs: Sequence[dict[str, Any]], program: str) -> Worst:
    each = {
        case: ran for case, ran in medians(runs, program).items() if min(ran) > 0
    }  # some checks cost no time at all
    return max((Worst(100 * (max(ran) / min(ran) - 1), case, ran) for case, ran in each.items()), default=Worst())


def medians(runs: Sequence[dict[str, Any]], program: str) -> dict[str, list[float]]:
    """A program's medians by case, a number for each run; with several GPUs by the GPU's place too."""
    places = {gpu["uuid"]: at for at, gpu in enumerate(runs[0]["provenance"]["gpus"])}
    found: dict[str, list[float]] = {}
    for one in (one for ran in runs for one in ran["results"] if one["program"] == program):
        place = places.get(one["target"].removeprefix("gpu:"))
        where = f" (GPU {place})" if len(places) > 1 and place is not None else ""
        found.setdefault(one["case"] + where, []).append(one["median"])
    return found
