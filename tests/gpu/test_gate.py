"""The gate on real GPUs, however many: one host through all of it, and this machine as two hosts by loopback.

With one GPU the two hosts have none each and use gloo; from two on they share them, and NCCL takes them for two hosts.
What was measured is printed (``pytest -s``).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from probe.rank.facts import visible_gpus
from probe.report import gate as report_gate
from tests.system.lab import FAULTY

pytestmark = pytest.mark.gpu

GIB = 1 << 30
BOUND_S = 240
TWO = pytest.mark.skipif(len(visible_gpus()) < 2, reason="needs two GPUs")


def gate(*arguments: str, code: int = 0, **environment: str) -> dict[str, Any]:
    """The report of a gate, which must leave with `code`; printed, with the time it took."""
    argv = [sys.executable, "-m", "probe", "gate", "--format", "json", "--budget", "200s", *arguments]
    began = time.monotonic()
    done = subprocess.run(
        argv, capture_output=True, timeout=BOUND_S, check=False, env={**os.environ, **environment}, text=True
    )
    print(f"\n{' '.join(argv[3:])}: {time.monotonic() - began:.1f} s\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    Draft202012Validator(report_gate.schema()).validate(found)
    assert (code, code) == (found["exit_code"], done.returncode)
    return found


def test_one_host_through_the_whole_gate() -> None:
    """A rank for each GPU, by NCCL, every word verified, one size past 1 GiB."""
    found = gate("--hosts", "localhost")
    count = len(visible_gpus())
    assert ("ready", ["localhost"]) == (found["verdict"], found["clean_hosts"])
    world = found["world"]
    assert ("nccl", count) == (world["backend"], world["ranks"])
    assert world["largest_bytes"] > GIB
    assert world["verified"] == 18
    facts = found["hosts"][0]["facts"]
    assert facts["gpus"].startswith(f"{count} x ")
    assert facts["driver"] != "none"
    if count > 1:
        assert world["busbw_gbps"] > 1
        assert facts["within_busbw_gbps"] > 1


def test_this_machine_as_two_hosts() -> None:
    found = gate("--local", "2")
    share = len(visible_gpus()) // 2
    assert ("ready", 2) == (found["verdict"], found["world"]["hosts"])
    assert ("nccl" if share else "gloo", 2 * max(1, share)) == (found["world"]["backend"], found["world"]["ranks"])
    assert found["world"]["busbw_gbps"] > 0


def test_gloo_can_be_asked_for_where_there_are_gpus() -> None:
    assert "gloo" == gate("--hosts", "localhost", "--backend", "gloo", "--skip-node")["world"]["backend"]


def test_nothing_is_left_on_the_gpus() -> None:
    """Killed in the middle: every process of it is gone, and so is what it held on the GPUs."""
    before = used_mib()
    process = subprocess.Popen(
        [sys.executable, "-m", "probe", "gate", "--hosts", "localhost", "--skip-node"], stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while used_mib() < before + 300 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    until = time.monotonic() + 15
    while used_mib() > before + 100:
        assert time.monotonic() < until, f"{used_mib()} MiB in use, {before} before"
        time.sleep(0.2)


def used_mib() -> int:
    argv = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return sum(map(int, done.stdout.split()))


@pytest.mark.parametrize(
    ("fault", "code"), [("kill", "RANK_KILLED"), ("segv", "RANK_CRASHED"), ("stop", "RANK_STOPPED")]
)
def test_a_rank_that_ends_or_hangs_under_nccl_is_named(fault: str, code: str) -> None:
    """On one host all ranks have the fault: it is in the local round that the host is found bad, and by its reason."""
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    found = gate("--hosts", "localhost", "--skip-node", code=1, PYTHONPATH=path, LAB_FAULT=fault)
    assert ("not_ready", [code]) == (found["verdict"], [cause["code"] for cause in found["causes"]])


def test_wrong_data_is_found_on_the_gpu() -> None:
    path = f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    found = gate("--hosts", "localhost", "--skip-node", code=1, PYTHONPATH=path, LAB_FAULT="wrong")
    assert "bad" == found["hosts"][0]["state"]
    assert "wrong words" in found["hosts"][0]["reason"]


@TWO
def test_a_wrong_interface_is_a_finding_and_no_hang(tmp_path: Path) -> None:
    """An interface that is not there: the hosts have no address on it, and are named for that."""
    found = gate("--local", "2", "--skip-node", "--ifname", "nothere0", code=1)
    assert {"NO_ADDRESS"} == {cause["code"] for cause in found["causes"]}
