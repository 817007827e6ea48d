"""What all figures share: commands run in turn and timed from outside, medians, and where the numbers were made.

::

    Bench (python, probe, a state folder) --> rounds(a, b, c)  --> samples  --> Figure (values beside their bars)
                                              a b c a b c ...                      |
                                                                       table, dated JSON (bench/run.py)

The sides of a figure run in turn, so that a machine which slows down slows all of them. A figure is the ratio of two
medians; every sample is kept.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOO_LONG_S = 120
"""No command of any figure takes a tenth of it: whoever does hangs."""


@dataclass(frozen=True)
class Bench:
    """What is measured, and how much of it."""

    python: str
    probe: tuple[str, ...]
    """The command, without arguments."""
    state: Path
    """For ``--state``: shared by the runs of one bench, as one machine's runs share theirs."""
    rounds: int
    hung_runs: int
    fakes: bool
    """Fake GPU hosts in private mount namespaces may be used, where root."""

    def check(self, *arguments: str) -> list[str]:
        return [*self.probe, "check", "--state", str(self.state), "--log", self.log, "--format", "json", *arguments]

    @property
    def log(self) -> str:
        """Beside the state: writing it is part of every run, and /var/log is this machine's own."""
        return f"{self.state}.log"

    def bare(self, program: str) -> list[str]:
        return [self.python, "-c", program]

    def ask(self, program: str) -> str:
        """What a few lines of Python print in the interpreter under test."""
        return output(self.bare(program))


@dataclass(frozen=True)
class Value:
    """One number of a figure; without a bar it is reported only."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False
    """The bar is a lower one."""

    @property
    def within(self) -> bool | None:
        if self.bar is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(frozen=True)
class Figure:
    name: str
    what: str
    """What is measured against what."""
    values: tuple[Value, ...]
    samples: Mapping[str, Sequence[Any]]
    notes: tuple[str, ...] = field(default=())

    @property
    def missed(self) -> bool:
        return any(value.within is False for value in self.values)


def ratio(samples: Mapping[str, Sequence[float]], name: str, over: str, bar: float | None = None) -> Value:
    return Value(f"{name} / {over}", median(samples[name]) / median(samples[over]), "x", bar)


def difference_s(samples: Mapping[str, Sequence[float]], name: str, over: str, bar: float | None = None) -> Value:
    return Value(f"{name} - {over}", median(samples[name]) - median(samples[over]), "s", bar)


# ---- running ---------------------------------------------------------------------------------------------------------


def environment(**changes: str) -> dict[str, str]:
    """The caller's, without settings of probe; and bytecode is written, so that all but the first run find it."""
    ours = ("PROBE_", "ENABLE_", "PYTHONDONTWRITEBYTECODE")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(ours)}, **changes}


def timed(argv: Sequence[str], judge: Callable[[str], None] = lambda stdout: None) -> float:
    """Seconds from before the start of `argv` to its end, all it wrote read; it must exit 0 and please `judge`."""
    began = time.perf_counter()
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOO_LONG_S,
        env=environment(),
    )
    took_s = time.perf_counter() - began
    if done.returncode:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}".strip()
        raise RuntimeError(f"exit code {done.returncode} from {' '.join(argv)}:\n{said}")
    judge(done.stdout)
    return took_s


def rounds(number: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Run every side once to warm the page cache and the bytecode, then all of them in turn, `number` times."""
    for side in sides.values():
        side()
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(number):
        for name, side in sides.items():
            samples[name].append(side())
    return samples


def passed(stdout: str, check: str) -> list[str]:
    """The targets of `check` that passed, of a report as JSON."""
    found = json.loads(stdout)["checks"]
    return [outcome["target"] for outcome in found if (outcome["id"], outcome["status"]) == (check, "pass")]


def output(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TOO_LONG_S, env=environment(), check=True)
    return done.stdout.strip()


# ---- where -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    uuid: str
    name: str
    driver: str


def gpus() -> list[Gpu]:
    """This machine's GPUs by nvidia-smi; none where there is no device node."""
    if not Path("/dev/nvidiactl").exists() or not shutil.which("nvidia-smi"):
        return []
    lines = output(["nvidia-smi", "--query-gpu=uuid,name,driver_version", "--format=csv,noheader"]).splitlines()
    return [Gpu(*(word.strip() for word in line.split(","))) for line in lines]


def machine_name() -> str:
    """``2 x NVIDIA H100 80GB HBM3`` or ``AMD EPYC, 2 cores``."""
    if found := gpus():
        return f"{len(found)} x {found[0].name}"
    return f"{_cpu_model()}, {cores()} cores"


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1).strip() if found else os.uname().machine


def cores() -> int:
    return len(os.sched_getaffinity(0))


def provenance(bench: Bench) -> dict[str, Any]:
    found = gpus()
    return {
        "machine": machine_name(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "kernel": os.uname().release,
        "gpus": [gpu.name for gpu in found],
        "driver": found[0].driver if found else None,
        "python": bench.ask("import platform; print(platform.python_version())"),
        "torch": bench.ask("import importlib.metadata as m; print(m.version('torch'))"),
        "probe": output([*bench.probe, "--version"]),
        "probe_command": list(bench.probe),
        "commit": commit(),
    }


def commit() -> str | None:
    """The checkout's, with ``+`` where src differs from it; None outside a git checkout."""
    git = ["git", "-C", str(ROOT)]
    try:
        return output([*git, "rev-parse", "HEAD"]) + ("+" if output([*git, "status", "--porcelain", "src"]) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
