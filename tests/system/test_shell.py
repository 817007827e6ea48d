"""Started by a shell that was there before: its age is not ours, and its children are not ours."""

import os
import signal
from pathlib import Path

import pytest

from tests.system.command import Command, end, ends, fake_torch, finish

SCRIPT = """
sleep 600 >/dev/null 2>&1 3>&- &
echo $! >&3
exec 3>&-
exec "$@"
"""


def test_a_shell_that_sleeps_and_then_execs_probe_leaves_it_its_whole_budget(probe: Command) -> None:
    """Exec keeps the time of the fork: an age of 6 s is not believed, and all rungs run within a budget of 6 s."""
    argv = ["sh", "-c", 'sleep 6; exec "$@"', "sh", *probe.check_argv("--format", "json", "--budget", "6s")]
    ran = probe.run(argv)
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")
    assert ran.report["elapsed_s"] < 6


@pytest.fixture
def job_pipe() -> tuple[int, int]:
    return os.pipe()


def job_of(reader: int) -> int:
    with os.fdopen(reader) as file:
        return int(file.readline())


def test_a_background_job_of_the_shell_outlives_the_run(probe: Command, job_pipe: tuple[int, int]) -> None:
    """A run ends by killing all its children; those that were there before it are somebody's job."""
    reader, writer = job_pipe
    argv = ["bash", "-c", f"exec 3>&{writer}; {SCRIPT}", "bash", *probe.check_argv("--format", "json")]
    with probe.started(argv, pass_fds=[writer]) as process:
        os.close(writer)
        job = job_of(reader)
        ran = finish(process)
    alive = not ends(job, 0)
    end(job)
    assert alive
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")
    assert ran.err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_and_not_the_job(
    probe: Command, tmp_path: Path, job_pipe: tuple[int, int], number: int
) -> None:
    """The shell's own pid is signalled: the run ends with the signal's code, its children go, the job stays."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport ctypes\nctypes.PyDLL(None).pause()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    reader, writer = job_pipe
    argv = ["bash", "-c", f"exec 3>&{writer}; {SCRIPT}", "bash", *probe.check_argv()]
    with probe.started(argv, env=env, pass_fds=[writer]) as process:
        os.close(writer)
        job = job_of(reader)
        fifo.read_text()
        process.send_signal(number)
        ran = finish(process)
    alive = not ends(job, 0)
    end(job)
    assert alive
    assert ran.code == 128 + number
    assert ran.err == ""


def test_a_run_beside_a_job_goes_with_its_shell(probe: Command, tmp_path: Path, job_pipe: tuple[int, int]) -> None:
    """SIGKILL to the waiting half: the half that runs dies with it, and its children with that."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\nimport ctypes\nctypes.PyDLL(None).pause()\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "fake", init)}
    reader, writer = job_pipe
    argv = ["bash", "-c", f"exec 3>&{writer}; {SCRIPT}", "bash", *probe.check_argv()]
    with probe.started(argv, env=env, pass_fds=[writer]) as process:
        os.close(writer)
        job = job_of(reader)
        fifo.read_text()
        process.kill()
        process.wait(5)
    pids = [int(line.partition(":")[0]) for line in probe.left()]
    gone = [ends(pid, 2) for pid in pids if pid != job]
    end(job)
    assert all(gone)


def test_a_caller_that_ignores_sigchld_changes_nothing(probe: Command) -> None:
    """Inherited as ignored, it would reap our children before we can ask how they ended."""
    argv = ["bash", "-c", "trap '' CHLD INT TERM; exec \"$@\"", "bash", *probe.check_argv("--format", "json")]
    ran = probe.run(argv)
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")
