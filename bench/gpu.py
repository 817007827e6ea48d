"""A real GPU host: all of ``probe check``, and rung 3 alone, over the test of one GPU that people write.

Every run of probe is asked whether it computed on every GPU: a run that found them busy, and so did nothing, is no
figure. It is made again, and counted.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.measure import Bench, Figure, Value, difference_s, gpus, passed, ratio, rounds, timed

WHOLE_BAR = 1.25
OVER_FLOOR_BAR_S = 0.35
CUDA_ONLY_BAR = 0.30
OVER_ALL_BAR = 0.90
"""Over the script that loops over all GPUs, where there are several: they are tested at once."""

ONE = "import torch; x = torch.randn(2, 2).to('cuda'); assert torch.isfinite(x.sum()).item()"
ALL = """
import torch
for n in range(torch.cuda.device_count()):
    x = torch.randn(2, 2).to(f"cuda:{n}")
    assert torch.isfinite(x.sum()).item()
"""
FLOOR = Path(__file__).with_name("floor.py")
SETTLE_S = 1.0
"""NVML's utilisation covers the last second (NVML API, nvmlUtilization_t): before that probe may see the other side."""
MOST_BUSY = 5


class Busy(Exception):
    """A run computed nothing on some GPU, because it took it for busy."""


def measure(bench: Bench) -> list[Figure]:
    """The sides in turn: probe, the article's test of one GPU, of all, the floor, and ``probe check --only cuda``.

    *Floor*: a script that imports torch, forks once per GPU and computes the same products (bench/floor.py).
    """
    uuids = [gpu.uuid for gpu in gpus()]
    tensor = bench.ask("import os, probe; print(os.path.join(os.path.dirname(probe.__file__), 'worker', 'tensor.py'))")
    busy: list[str] = []
    sides: dict[str, Callable[[], float]] = {
        "probe": lambda: settled(bench.check(), ("cuda.kernel", "torch.tensor"), uuids, busy),
        "one GPU": lambda: timed(bench.bare(ONE)),
        "floor": lambda: timed([bench.python, "-P", str(FLOOR), tensor, *uuids]),
        "only cuda": lambda: settled(bench.check("--only", "cuda"), ("cuda.context", "cuda.kernel"), uuids, busy),
        "all GPUs": lambda: timed(bench.bare(ALL)),
    }
    samples = rounds(bench.rounds, sides)
    notes = (f"{len(uuids)} GPUs", f"{len(busy)} runs made again: {busy[0]}" if busy else "no run found a GPU busy")
    pairs_s = [probe_s - floor_s for probe_s, floor_s in zip(samples["probe"], samples["floor"], strict=True)]
    whole = (
        ratio(samples, "probe", "one GPU", WHOLE_BAR),
        difference_s(samples, "probe", "floor", OVER_FLOOR_BAR_S),
        Value("probe - floor, median of pairs", median(pairs_s), "s"),
        ratio(samples, "probe", "all GPUs", OVER_ALL_BAR if len(uuids) > 1 else None),
        ratio(samples, "floor", "one GPU"),
    )
    rung3 = (ratio(samples, "only cuda", "one GPU", CUDA_ONLY_BAR),)
    rung3_samples = {name: samples[name] for name in ("only cuda", "one GPU")}
    return [
        Figure("gpu", "probe check, all rungs and GPUs, over a bare torch test of one GPU", whole, samples, notes),
        Figure("cuda_only", "probe check --only cuda, over the same test of one GPU", rung3, rung3_samples, notes),
    ]


def settled(argv: list[str], checks: tuple[str, ...], uuids: list[str], busy: list[str]) -> float:
    """Time one run that computed on all of `uuids`; one that found them busy goes into `busy` and is made again."""
    for _ in range(MOST_BUSY):
        time.sleep(SETTLE_S)
        try:
            return timed(argv, lambda stdout: _computed(stdout, checks, uuids))
        except Busy as found:
            busy.append(str(found))
    raise RuntimeError(f"{MOST_BUSY} runs in a row computed nothing: {busy[-1]}")


def _computed(stdout: str, checks: tuple[str, ...], uuids: list[str]) -> None:
    if reasons := [found["summary"] for found in json.loads(stdout)["checks"] if found["summary"].startswith("busy (")]:
        raise Busy(reasons[0])
    for check in checks:
        assert sorted(passed(stdout, check)) == sorted(f"gpu:{uuid}" for uuid in uuids), stdout
