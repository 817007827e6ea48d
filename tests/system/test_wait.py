"""``--wait``: attempts until one is healthy or the time is up; one report on stdout, a line an attempt on stderr."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.command import Command, fake_torch, finish
from tests.system.test_state import left, write_state

FAST = ("--only", "device.stuck")


@pytest.fixture
def obstacle(probe: Command) -> "Iterator[subprocess.Popen[bytes]]":
    """While it lives, every run is unhealthy: the state says that it is a stuck child."""
    process = subprocess.Popen(["sleep", "600"])
    write_state(probe.state, leaving=[left(process.pid)])
    yield process
    process.kill()
    process.wait()


def test_it_waits_until_healthy(probe: Command, obstacle: "subprocess.Popen[bytes]") -> None:
    """The first attempt fails and says so on stderr; then the machine is mended; stdout is the last report alone."""
    with probe.started(probe.check_argv(*FAST, "--format", "json", "--wait", "1m")) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        obstacle.kill()
        obstacle.wait()
        ran = finish(process)
    assert first.startswith("probe: attempt 1: unhealthy")
    assert (ran.code, ran.report["verdict"]) == (0, "healthy")
    assert ran.elapsed_s < 10


def test_the_time_is_up(probe: Command, obstacle: "subprocess.Popen[bytes]") -> None:
    """The last attempt's exit code and report, once; a line for the attempt before it; not much longer than asked."""
    ran = probe.check(*FAST, "--wait", "4s")
    assert (ran.code, ran.codes) == (1, ["GPU_DRIVER_STUCK"])
    assert ran.err.count("\n") == 1
    assert 1.5 < ran.elapsed_s < 4.25
    assert obstacle.poll() is None


def test_attempts_are_made_as_long_as_a_whole_one_fits(probe: Command, obstacle: "subprocess.Popen[bytes]") -> None:
    """With a small budget the wait is used: two attempts, 2 s apart, in 5 s."""
    ran = probe.check(*FAST, "--budget", "1s", "--wait", "5s")
    assert (ran.code, ran.codes) == (1, ["GPU_DRIVER_STUCK"])
    assert ran.err.count("\n") == 1
    assert 1.5 < ran.elapsed_s < 5.25
    assert obstacle.poll() is None


def test_healthy_at_once_waits_for_nothing(probe: Command) -> None:
    """One attempt, one report, nothing on stderr."""
    ran = probe.check(*FAST, "--wait", "5m")
    assert (ran.code, ran.err) == (0, "")
    assert ran.elapsed_s < 2


def test_a_usage_error_is_not_tried_again(probe: Command) -> None:
    """Nor a wait that is no duration: exit code 2, one line."""
    for args in (("--only", "nonsense", "--wait", "1m"), ("--wait", "soon"), ("--wait", "")):
        ran = probe.text(*args)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert ran.elapsed_s < 2


def test_each_attempt_has_its_own_budget(probe: Command, tmp_path: Path) -> None:
    """A hung import costs each attempt its budget, not the wait; the last one has what is left of the wait."""
    init = "import threading\nthreading.Event().wait()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    ran = probe.check("--only", "torch.import", "--budget", "1s", "--wait", "4s", env=env)
    assert (ran.code, ran.codes) == (1, ["BUDGET_TOO_SHORT"])  # of 1 s, an import has 0.1 s: that blames nobody
    assert ran.report["budget_s"] == 1
    assert ran.elapsed_s < 4.25


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_an_attempt(probe: Command, tmp_path: Path, send: "object", number: int, code: int) -> None:
    """It ends the attempt, which reports, and the wait; nothing is left."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport ctypes\nctypes.PyDLL(None).pause()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    argv = probe.check_argv("--only", "torch", "--format", "json", "--wait", "1m")
    with probe.started(argv, env=env, start_new_session=True) as process:
        fifo.read_text()
        send(process.pid, number)  # type: ignore[operator]
        ran = finish(process)
    assert (ran.code, ran.err) == (code, "")
    assert ran.report["verdict"] == "undetermined"


def test_a_signal_between_two_attempts(probe: Command, obstacle: "subprocess.Popen[bytes]") -> None:
    """There is nobody to ask: it leaves at once with the signal's code."""
    with probe.started(probe.check_argv(*FAST, "--format", "json", "--wait", "1m")) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        ran = finish(process)
    assert ran.code == 130
    assert ran.err == ""
    assert ran.out == "" or json.loads(ran.out)


def test_an_attempt_that_is_killed_is_not_healthy(probe: Command, tmp_path: Path) -> None:
    """SIGKILL to the waiting process takes the attempt and its children with it."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport ctypes\nctypes.PyDLL(None).pause()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    from tests.system.command import ends

    with probe.started(probe.check_argv("--only", "torch", "--wait", "1m"), env=env) as process:
        fifo.read_text()
        process.kill()
        process.wait(5)
    assert all(ends(int(line.partition(":")[0]), 2) for line in probe.left())
