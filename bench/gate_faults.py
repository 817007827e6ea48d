"""From the start of the gate to the name of what is wrong: one bad host of four, each a namespace with a real sshd.

Needs root, openssh-server and iproute2. The hosts' own checks run too: what counts is what a user waits.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from bench.measure import Bench, Figure, Value
from tests.system.command import Ran
from tests.system.lab import FAULTY, Lab

ROUND_S = 1.0
BARS_S = {"killed": 25.0, "stopped": 45.0, "black hole": 60.0}
NAMED = {"killed": "RANK_KILLED", "stopped": "RANK_STOPPED", "black hole": "LINK_BAD"}
RUNS = 3


def measure(bench: Bench) -> Figure:
    """The median of three runs of each fault, and of the pair rounds in them in which nothing was wrong."""
    samples: dict[str, list[float]] = {name: [] for name in BARS_S}
    warm_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="probe-bench-lab-") as folder:
        lab = Lab(Path(folder), hosts=4)
        try:
            lab.make()
            for _ in range(min(RUNS, bench.rounds)):
                for name, spoil in FAULTS.items():
                    spoil(lab)
                    ran = lab.gate()
                    samples[name].append(named_s(ran, NAMED[name]))
                    warm_s += healthy_rounds_s(json.loads(ran.out))
                    lab.mend()
        finally:
            lab.remove()
    values = [Value(f"{name}, named", median(samples[name]), "s", bar) for name, bar in BARS_S.items()]
    values.append(Value("a round of pairs, warm", median(warm_s), "s", ROUND_S))
    what = "one bad host of four, from the start to its name"
    return Figure("gate_faults", what, tuple(values), {**samples, "round": warm_s})


def named_s(ran: Ran, code: str) -> float:
    """Seconds of the whole run, which must blame the right one."""
    found = json.loads(ran.out)
    assert code in [cause["code"] for cause in found["causes"]], ran
    return ran.elapsed_s


def healthy_rounds_s(found: Mapping[str, Any]) -> list[float]:
    return [
        float(one["elapsed_s"])
        for one in found["rounds"]
        if one["kind"] in ("ring", "suspects") and set(one["results"]) == {"passed"}
    ]


def rank_fault(fault: str) -> Callable[[Lab], None]:
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    return lambda lab: lab[3].start(PYTHONPATH=path, LAB_FAULT=fault, LAB_FROM="2")


FAULTS: Mapping[str, Callable[[Lab], None]] = {
    "killed": rank_fault("kill"),
    "stopped": rank_fault("stop"),
    "black hole": lambda lab: lab[1].black_hole(lab[2]),
}
