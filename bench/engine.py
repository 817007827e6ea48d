"""1,000 jobs that do nothing: what the engine adds to each check."""

import json
from pathlib import Path
from statistics import median

from bench.measure import Bench, Figure, Value, output

BAR_MS = 0.1
JOBS = 1000
ROUNDS = 9
PROGRAM = Path(__file__).with_name("noop_jobs.py")


def measure(bench: Bench) -> Figure:
    """`engine.run` of 1,000 checks that return at once, against as many bare tasks of one anyio task group.

    In one process of the interpreter under test, on asyncio, in turn, 9 times; without the loop's own start.
    """
    samples_ms: dict[str, list[float]] = json.loads(output([bench.python, "-P", str(PROGRAM), str(JOBS), str(ROUNDS)]))
    values = (
        Value("engine, per job", median(samples_ms["engine"]), "ms", BAR_MS),
        Value("bare task, each", median(samples_ms["task"]), "ms"),
    )
    return Figure("engine", f"{JOBS} jobs that do nothing, beside as many bare tasks", values, samples_ms)
