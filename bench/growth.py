"""A thousand health checks: does anything grow? Processes, descriptors, files and bytes after each run.

Everything a run could leave is given a place of its own that is counted: the state, the home, the temporary files, the
working directory, shared memory; whatever process it leaves falls to this one, a subreaper. The log is meant to grow,
to its bound: it is counted apart.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import stage
from bench.measure import Bench, Figure, Value, output

SETTLED = 10
"""Runs after which nothing may change any more: bytecode is written and the state file has its fields by then."""
LOG_BOUND_BYTES = 2 << 20
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked into, not written to
LIVENESS = ("--profile", "liveness")


class Counted(NamedTuple):
    processes: int
    descriptors: int
    files: int
    file_bytes: int


def measure(bench: Bench, liveness: int = 1000, readiness: int = 50) -> Figure:
    """`liveness` runs of the liveness profile, then `readiness` whole ones; the slope of each count, per 1,000 runs."""
    stage.become_subreaper()
    samples: dict[str, list[Counted]] = {}
    with tempfile.TemporaryDirectory(prefix="probe-bench-growth-") as name:
        folder = Path(name)
        for kind, runs, arguments in (("liveness", liveness, LIVENESS), ("readiness", readiness, ())):
            samples[kind] = [one(bench, folder, arguments) for _ in range(runs)]
        log_bytes = sum(file.stat().st_size for file in folder.glob("health.log*"))
    values = [
        Value(f"{kind}: {field}, slope", slope([getattr(found, field) for found in settled(rows)]), "a run", 0.0)
        for kind, rows in samples.items()
        for field in Counted._fields
    ]
    values.append(Value("the log", float(log_bytes), "bytes", float(LOG_BOUND_BYTES)))
    what = f"{liveness} liveness and {readiness} readiness runs: what is left after each"
    return Figure("growth", what, tuple(values), {kind: [list(row) for row in rows] for kind, rows in samples.items()})


def settled(rows: Sequence[Counted]) -> Sequence[Counted]:
    return rows[min(SETTLED, len(rows) // 2) :]


def slope(counts: Sequence[int]) -> float:
    """Of the straight line through them by least squares, its sign aside; 0 where nothing changes."""
    n = len(counts)
    middle, mean = (n - 1) / 2, sum(counts) / n
    over = sum((at - middle) ** 2 for at in range(n))
    return abs(sum((at - middle) * (count - mean) for at, count in enumerate(counts)) / over) if over else 0.0


def one(bench: Bench, folder: Path, arguments: Sequence[str]) -> Counted:
    """One run with all its places under `folder`, and what is there after it."""
    for place in ("home", "tmp", "cwd"):
        (folder / place).mkdir(exist_ok=True)
    argv = [*bench.probe, "check", "--state", str(folder / "state"), "--log", str(folder / "health.log")]
    argv += ["--format", "json", *arguments]
    homes = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "XDG_CACHE_HOME": str(folder / "home/cache")}
    said = output(["env", "-C", str(folder / "cwd"), *[f"{name}={value}" for name, value in homes.items()], *argv])
    assert json.loads(said)["verdict"] in ("healthy", "degraded"), said[-2000:]
    return counted(folder)


def counted(folder: Path) -> Counted:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("health.log")]
    files += [file for file in SHARED_MEMORY.rglob("*") if file.is_file()]
    return Counted(
        processes=len(stage.children()),
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - names, not paths
        files=len(files),
        file_bytes=sum(file.stat().st_size for file in files),
    )
