"""Hangs outside our code: device nodes, mounts, imports, readers. The command ends in time and names what hung."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.scenario import Scenario
from tests.system.command import ARGV, BOUND_S, LATE_S, Command, Ran, ends, fake_torch, finish, missing

BUDGET_S = 3.0
BUDGET = ("--budget", f"{BUDGET_S:g}s")
WITH_TORCH_S = 6.0
"""Where torch must be there in time: its import takes 2.2 s of a slower core, and the children have 2.2 of 3 s."""
EARLY_S = 1.0
"""Nothing that hangs is given up earlier than this before the budget."""
ENDS_S = 2.0
"""How long a child may take to go after probe has gone."""
FUSE_HANG = Path(__file__).parents[1] / "fakes" / "fuse_hang.py"
SLEEPS = "import threading\nthreading.Event().wait()\n"
HOLDS_THE_GIL = "import ctypes\nctypes.PyDLL(None).pause()\n"


def ended_in_time(ran: Ran, budget_s: float = BUDGET_S) -> None:
    assert budget_s - EARLY_S <= ran.elapsed_s <= budget_s + LATE_S, ran


def first_problem(ran: Ran) -> str:
    """The check that the report names first: the first evidence of its first cause."""
    return str(ran.report["causes"][0]["checks"][0]["id"])


@contextmanager
def hung_mount(folder: Path, *, unkillable: bool = False) -> Iterator[list[str]]:
    """A mount over `folder` that never answers, in a mount namespace of its own; yields the words that enter it."""
    if not Path("/dev/fuse").exists():
        missing("no /dev/fuse")
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, str(FUSE_HANG), str(folder)]
    server = subprocess.Popen([*argv, *(["--unkillable"] if unkillable else [])], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            missing("no FUSE file system can be mounted")
        yield ["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", "--"]
    finally:
        server.terminate()
        server.communicate(timeout=10)


@pytest.mark.system
@pytest.mark.cc
def test_an_open_that_never_returns(probe: Command, fakes: Path) -> None:
    """``/dev/nvidia0`` hangs: device.nodes is timeout and first, NVML and CUDA have answered all the same."""
    played = Scenario.load(Path(__file__).parents[1] / "hosts" / "node-open-hangs.toml")
    ran = probe.on(played, probe.check_argv("--format", "json", *BUDGET, "--skip", "torch"), fakes)
    ended_in_time(ran)
    assert (ran.code, ran.codes[0]) == (1, "DEVICE_OPEN_HANGS")
    assert ran.status("device.nodes") == "timeout"
    assert "/dev/nvidia0" in ran.outcome("device.nodes")["summary"]
    assert ran.status("nvml.reach") == ran.status("cuda.init") == "pass"


@pytest.mark.system
def test_a_mount_that_never_answers(probe: Command) -> None:
    """``/dev/shm`` does not answer: device.shm is timeout, an advisory one, and everything else is answered."""
    with hung_mount(Path("/dev/shm")) as entering:
        ran = probe.run([*entering, *probe.check_argv("--format", "json", "--budget", f"{WITH_TORCH_S:g}s")])
    ended_in_time(ran, WITH_TORCH_S)
    assert (ran.code, ran.report["verdict"]) == (0, "degraded")
    assert first_problem(ran) == "device.shm"
    assert ran.status("device.shm") == "timeout"
    assert "/dev/shm" in ran.outcome("device.shm")["summary"]
    assert ran.status("torch.tensor") == "pass"


@pytest.mark.system
def test_a_child_that_outlives_sigkill_is_left_to_the_next_run_which_decides(probe: Command) -> None:
    """In state D: this run ends in time and notes it; the next ones say it is stuck and start nothing there."""
    with hung_mount(Path("/dev/shm"), unkillable=True) as entering:
        argv = [*entering, *probe.check_argv("--format", "json", *BUDGET, "--skip", "torch")]
        ran = probe.run(argv)
        ended_in_time(ran)
        assert (ran.code, ran.status("device.shm")) == (0, "timeout")
        file = probe.state / "state.json"
        kept = json.loads(file.read_text())
        assert [(child["worker"], child["target"]) for child in kept["leaving"]] == [("files", "")]

        soon = probe.run(argv)  # less than 10 s after the kill
        assert soon.status("device.stuck") == "pass"

        kept = json.loads(file.read_text())
        for child in kept["leaving"]:
            child["killed_boottime_s"] -= 60
        file.write_text(json.dumps(kept))
        ran = probe.run(argv)
        assert (ran.code, ran.codes[0]) == (1, "GPU_DRIVER_STUCK")
        assert "state D" in ran.outcome("device.stuck")["summary"]
        assert ran.status("device.shm") == "skip"
        assert ran.elapsed_s < BUDGET_S - EARLY_S  # nothing was started that could hang
    assert probe.check("--skip", "torch").status("device.stuck") == "pass"


@pytest.mark.parametrize("init", [SLEEPS, HOLDS_THE_GIL], ids=["sleeps", "holds-the-gil"])
def test_an_import_of_torch_that_never_ends(probe: Command, tmp_path: Path, init: str) -> None:
    """torch.import is timeout and first, with where it hung; what needs it is skip; rungs below have answered."""
    ran = probe.check(*BUDGET, env={"PYTHONPATH": fake_torch(tmp_path / "fake", init)})
    ended_in_time(ran)
    assert (ran.code, ran.codes[0]) == (1, "TORCH_IMPORT_HANGS")
    assert first_problem(ran) == "torch.import"
    assert ran.status("torch.import") == "timeout"
    assert "__init__.py" in ran.outcome("torch.import")["data"]["stack"]
    assert ran.outcome("torch.tensor")["summary"] == "needs torch.import"
    assert ran.status("device.shm") == "pass"
    assert ran.err == ""


def test_torch_that_ends_the_process_or_crashes_is_told_apart(probe: Command, tmp_path: Path) -> None:
    """A segfault in the import is a failure that names the signal; a silent exit is unknown; neither hangs."""
    crash = fake_torch(tmp_path / "crash", "import ctypes\nctypes.string_at(0)\n")
    ran = probe.check("--only", "torch", env={"PYTHONPATH": crash})
    assert (ran.code, ran.codes[0]) == (1, "TORCH_CRASHED_SIGSEGV")
    leaves = fake_torch(tmp_path / "leaves", "import os\nos._exit(0)\n")
    ran = probe.check("--only", "torch", env={"PYTHONPATH": leaves})
    assert (ran.code, ran.status("torch.import")) == (3, "unknown")


def full_pipe() -> tuple[int, int]:
    """A pipe that takes not one byte more."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    return reader, writer


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("check", "--only", "device.stuck", *BUDGET), 0),
        (("check", "--only", "device.stuck", *BUDGET, "--format", "json"), 0),
        (("check", "--only", "nvml", *BUDGET), 3),
        (("check", "--only", "nonsense", *BUDGET, "--format", "json"), 2),
        (("check", "--nonsense", *BUDGET), 2),
    ],
    ids=["healthy", "healthy-json", "undetermined", "usage-json", "usage-flag"],
)
def test_a_reader_that_does_not_read(probe: Command, args: tuple[str, ...], code: int) -> None:
    """Stdout and stderr are full pipes: the exit code is right, and in time."""
    reader, writer = full_pipe()
    try:
        argv = [*ARGV, *args, "--state", str(probe.state)]
        with probe.started(argv, stdout=writer, stderr=writer) as process:
            process.wait(BOUND_S)
            ran = finish(process)
    finally:
        os.close(reader)
        os.close(writer)
    assert ran.elapsed_s <= BUDGET_S + LATE_S
    assert ran.code == code


def test_a_reader_that_has_gone(probe: Command) -> None:
    """Stdout and stderr are pipes that nobody has open: the exit code all the same."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = probe.check_argv("--only", "device.stuck")
    with probe.started(argv, stdout=writer, stderr=writer) as process:
        os.close(writer)
        assert finish(process).code == 0


def test_no_stdout_at_all(probe: Command) -> None:
    """Fds 0, 1 and 2 closed by the caller: the exit code all the same, and no child writes where the state is."""
    argv = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *probe.check_argv("--skip", "nvml")]
    ran = probe.run(argv)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


@pytest.mark.system
@pytest.mark.parametrize("where", ["--config", "--state"])
def test_a_file_of_our_own_on_a_mount_that_never_answers(probe: Command, tmp_path: Path, where: str) -> None:
    """Held up before the first check: a net says so, undetermined, in time, and the main thread's wait is no matter."""
    folder = tmp_path / "dead"
    folder.mkdir()
    with hung_mount(folder) as entering:
        argv = [*entering, *ARGV, "check", *BUDGET, where, str(folder / "it")]
        ran = probe.run(argv)
    assert ran.elapsed_s <= BUDGET_S + LATE_S
    assert ran.code == 3
    assert ran.first_line.startswith("undetermined: ")


def test_a_working_directory_that_was_removed(probe: Command, tmp_path: Path) -> None:
    """Nothing that probe does rests on it."""
    gone = tmp_path / "gone"
    argv = ["sh", "-c", 'cd "$1" && rmdir "$1" && shift && exec "$@"', "sh", str(gone)]
    gone.mkdir()
    ran = probe.run([*argv, sys.executable, "-P", "-m", "probe", *probe.check_argv("--format", "json")[3:]])
    assert (ran.code, ran.status("torch.tensor")) == (0, "pass")


def test_everything_is_gone_when_probe_itself_is_killed(probe: Command, tmp_path: Path) -> None:
    """SIGKILL to probe while its children hang: they die with it, the fork server's too."""
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}, 'w').close()\n{HOLDS_THE_GIL}"
    with probe.started(probe.check_argv(*BUDGET), env={"PYTHONPATH": fake_torch(tmp_path / "fake", init)}) as process:
        fifo.read_text()  # the import is in it
        running = [int(line.partition(":")[0]) for line in probe.left()]
        assert len(running) >= 2  # itself and the fork server; the child that asks files may have ended by now
        process.kill()
        process.wait(5)
    assert [] == [pid for pid in running if not ends(pid, ENDS_S)]
