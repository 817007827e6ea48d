"""Several GPUs: the gate over two hosts by ssh, NCCL over sockets between them (tests/gpu/pair.py).

From the start to the verdict, healthy and with one bad rank, and how long a warm round of the two takes.
"""

import json
import os
import tempfile
from pathlib import Path
from statistics import median

from bench.gate_faults import named_s
from bench.measure import Bench, Figure, Value
from tests.gpu.pair import Pair, pair
from tests.system.lab import FAULTY

ROUND_BAR_S = 2.0
RUNS = 2
FAULTS = {"kill": "RANK_KILLED", "stop": "RANK_STOPPED", "hang": "PAIR_FAILS"}


def measure(bench: Bench) -> Figure:
    samples: dict[str, list[float]] = {"healthy": [], **{fault: [] for fault in FAULTS}, "round": []}
    world: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="probe-bench-pair-") as folder, pair(Path(folder)) as hosts:
        for _ in range(min(RUNS, bench.rounds)):
            ran = hosts.gate()
            found = json.loads(ran.out)
            assert found["verdict"] == "ready", ran
            world = found["world"]
            samples["healthy"].append(ran.elapsed_s)
            for fault, code in FAULTS.items():
                spoil(hosts, LAB_FAULT=fault, LAB_FROM="2")
                samples[fault].append(named_s(hosts.gate("--skip-node"), code))
            spoil(hosts, LAB_FAULT="hang", LAB_IN="torchrun")  # the world hangs, and the two alone do not
            samples["round"] += warm_s(hosts.gate("--skip-node").out)
            hosts.mend()
    values = [Value(f"{name}, to the verdict", median(samples[name]), "s") for name in ("healthy", *FAULTS)]
    values.append(Value("a round of two hosts, warm", median(samples["round"]), "s", ROUND_BAR_S))
    notes = (f"world: {json.dumps(world)}",)
    return Figure("gate_pair", "the gate over two hosts by ssh, each with its GPUs", tuple(values), samples, notes)


def spoil(hosts: Pair, **fault: str) -> None:
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    hosts[2].start("", None, PYTHONPATH=path, **fault)


def warm_s(out: str) -> list[float]:
    """The rounds in which the two passed."""
    rounds = json.loads(out)["rounds"]
    made = [one["elapsed_s"] for one in rounds if one["kind"] == "ring" and set(one["results"]) == {"passed"}]
    assert made, rounds
    return made
