"""The loop of ``--wait``, with attempts that are small processes; the whole command is in tests/system/test_wait.py."""

import json
import os
import subprocess
import sys

import pytest

DRIVE = """
import json, os, sys, time
from probe import waiting
from probe.attempt import CURRENT
from probe.clock import Budget

plan = json.loads(sys.argv[1])
waiting.PAUSE_S = 0.0
CURRENT.budget = Budget(time.monotonic(), 9.0)
CURRENT.column = plan.get("column", "shell")
attempts = 0
budgets = []

def attempt(budget_s, verdict_fd):
    way = plan["ways"][min(attempts_so_far(), len(plan["ways"]) - 1)]
    note(budget_s)
    if way == "killed":
        os.kill(os.getpid(), 9)
    if way == "silent":
        os._exit(0)
    if way == "crashed":
        os.abort()
    if way == "raises":
        os._exit(3)
    os.write(1, f"{way}: said once\\n".encode())
    os.write(verdict_fd, way.encode())
    os._exit({"healthy": 0, "degraded": 0, "unhealthy": 1, "undetermined": 3}[way])

def attempts_so_far():
    with open(plan["log"]) as file:
        return len(file.readlines())

def note(budget_s):
    with open(plan["log"], "a") as file:
        file.write(f"{budget_s}\\n")

open(plan["log"], "w").close()
code = waiting.Waiter(plan.get("budget_s", 2.0), attempt).wait(plan["wait_s"])
sys.stdout.flush()
os._exit(code)
"""


def wait(
    tmp_path: "os.PathLike[str]", *ways: str, wait_s: float = 30.0, **plan: object
) -> tuple["subprocess.CompletedProcess[str]", list[float]]:
    """The process that waited, and the budget of each attempt."""
    log = os.path.join(tmp_path, "log")  # noqa: PTH118 - a PathLike of pytest's
    argv = [sys.executable, "-c", DRIVE, json.dumps({"ways": ways, "wait_s": wait_s, "log": log, **plan})]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    with open(log) as file:  # noqa: PTH123
        return done, [float(line) for line in file]


@pytest.mark.parametrize("good", ["healthy", "degraded"])
def test_the_first_good_verdict_ends_it(tmp_path: "os.PathLike[str]", good: str) -> None:
    """Its output, once, and its code; a line on stderr for each before it."""
    done, budgets = wait(tmp_path, "unhealthy", "undetermined", good)
    assert (done.returncode, done.stdout) == (0, f"{good}: said once\n")
    assert done.stderr == ("probe: attempt 1: unhealthy: said once\nprobe: attempt 2: undetermined: said once\n")
    assert budgets == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("way", "code"), [("unhealthy", 1), ("undetermined", 3)])
def test_when_the_time_is_up_the_last_verdict_counts(tmp_path: "os.PathLike[str]", way: str, code: int) -> None:
    """A wait too short for a second attempt: one is made all the same, with a budget of a second at least."""
    done, budgets = wait(tmp_path, way, wait_s=0.5)
    assert (done.returncode, done.stdout, done.stderr) == (code, f"{way}: said once\n", "")
    assert budgets == [1.0]


@pytest.mark.parametrize("way", ["killed", "crashed", "raises"])
def test_an_attempt_without_a_verdict_is_not_good(tmp_path: "os.PathLike[str]", way: str) -> None:
    """Killed or crashed: undetermined; and it is tried again."""
    done, budgets = wait(tmp_path, way, wait_s=0.5)
    assert (done.returncode, done.stdout) == (3, "")
    done, budgets = wait(tmp_path, way, "healthy")
    assert (done.returncode, done.stdout) == (0, "healthy: said once\n")
    assert len(budgets) == 2


def test_exit_code_0_without_a_verdict_is_not_good(tmp_path: "os.PathLike[str]") -> None:
    """Absence is never health: an attempt that says nothing and leaves with 0 has not passed."""
    done, _ = wait(tmp_path, "silent", "healthy")
    assert done.stdout == "healthy: said once\n"
    done, _ = wait(tmp_path, "silent", wait_s=0.5)
    assert done.returncode == 3


def test_a_killed_attempt_has_the_columns_code(tmp_path: "os.PathLike[str]") -> None:
    """Docker knows 0 and 1."""
    done, _ = wait(tmp_path, "killed", wait_s=0.5, column="docker")
    assert done.returncode == 1
