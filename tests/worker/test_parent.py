"""Ugly children, real ones: what their ends mean, how long it takes, and that nothing is left of them."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probe.worker.ending import ending, frames, how
from probe.worker.parent import Children, End, Exit, bootstrap

DRIVE = Path(__file__).parent / "drive.py"
HOWS = ("spawn", "fork")


class Driven:
    """Runs drive.py and knows every process that came of it, by a mark in the environment."""

    def __init__(self) -> None:
        self.mark = f"MARK_{uuid.uuid4().hex}"

    def __call__(self, way: str, how: str, *, limit_s: float = 0, kill_after_s: float = 20, deaf: bool = False) -> Any:
        argv = [sys.executable, str(DRIVE), way, how, str(limit_s), str(kill_after_s), *(["deaf"] if deaf else [])]
        done = subprocess.run(argv, env={**os.environ, self.mark: "1"}, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def left(self) -> list[int]:
        """The pids of all processes of the machine, zombies too, that have the mark in their environment."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if self.mark.encode() in (folder / "environ").read_bytes():
                        found.append(int(folder.name))
                except OSError:  # not ours to look at, or gone meanwhile
                    continue
        return found


@pytest.fixture
def driven() -> Iterator[Driven]:
    """`drive.py` as a call; after the test no process that came of it exists anywhere."""
    made = Driven()
    yield made
    left = made.left()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


@pytest.mark.parametrize("how", HOWS)
def test_a_child_that_behaves_is_heard(driven: Driven, how: str) -> None:
    """Spawned or forked: its answer arrives."""
    assert driven("behave", how)["answer"] == 42


@pytest.mark.parametrize("how", HOWS)
def test_a_child_that_raises_is_unknown_and_probes_own_fault(driven: Driven, how: str) -> None:
    """An exception in probe's own code is PROBE_INTERNAL, with its last line."""
    result = driven("raise_", how)
    assert (result["status"], result["data"]["reason"]) == ("unknown", "internal")
    assert "ValueError: ugly on purpose" in result["summary"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("way", "name"), [("segfault", "SIGSEGV"), ("abort", "SIGABRT")])
def test_a_crash_is_a_failure_that_names_the_signal_and_the_call(driven: Driven, how: str, way: str, name: str) -> None:
    """Killed by a signal of its own inside a driver or torch call; also when only the zygote can tell which signal."""
    result = driven(way, how)
    assert (result["status"], result["data"]["signal"]) == ("fail", name)
    assert f"crashed with {name}, in being ugly: {way}" in result["summary"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", ["hang", "hang_holding_the_gil", "ignore_term", "outlive_its_limit"])
def test_a_child_that_hangs_ends_by_its_own_limit_and_says_where(driven: Driven, how: str, way: str) -> None:
    """Also in C with the GIL held: faulthandler's thread needs neither."""
    result = driven(way, how, limit_s=0.5)
    assert result["status"] == "timeout"
    assert "ugly.py:" in result["data"]["stack"]
    assert way.replace("ignore_term", "hang") in result["data"]["stack"]
    assert 0.4 <= result["ended_s"] < 5  # its limit counts from its fork, which is before its parent knows of it


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", ["hang", "hang_holding_the_gil", "ignore_term"])
def test_a_child_that_does_not_end_is_killed_and_reaped(driven: Driven, how: str, way: str) -> None:
    """Without a limit of its own it goes at once when the time is up."""
    result = driven(way, how, kill_after_s=0.5)
    assert (result["status"], result["survivors"]) == ("timeout", [])
    assert result["reaped_s"] < 0.5


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("way", ["flood_reply", "flood_one_line"])
def test_a_flood_of_replies_is_cut(driven: Driven, how: str, way: str) -> None:
    """10 MB of replies, or one line over 1 MiB: killed, unknown, nothing held in memory."""
    result = driven(way, how)
    assert (result["status"], result["data"]["reason"]) == ("unknown", "flooded")


@pytest.mark.parametrize("how", HOWS)
def test_a_flood_on_stdout_or_stderr_is_drained(driven: Driven, how: str) -> None:
    """10 MB through either blocks nobody; of stderr the end is kept."""
    assert driven("flood_stdout", how)["answer"] == 42
    result = driven("flood_stderr", how)
    assert result["tail"].endswith("the last word\n")
    assert len(result["tail"]) <= 8192


@pytest.mark.parametrize("how", HOWS)
def test_a_silent_exit_is_unknown_with_its_status(driven: Driven, how: str) -> None:
    """Absence is never health."""
    result = driven("leave_silently", how)
    assert (result["status"], result["data"]["reason"]) == ("unknown", "silent")
    assert "ended with status 7" in result["summary"]


@pytest.mark.parametrize("how", HOWS)
def test_what_c_prints_on_fd_1_is_no_reply(driven: Driven, how: str) -> None:
    """NCCL, cuBLAS and the driver print there: it lands in the stderr tail."""
    result = driven("print_from_c", how)
    assert (result["answer"], result["garbage"]) == (42, 0)
    assert "NCCL version" in result["tail"]


@pytest.mark.parametrize("how", HOWS)
def test_garbage_on_the_reply_pipe_hides_no_answer(driven: Driven, how: str) -> None:
    """Lines that are no records are passed over."""
    result = driven("print_garbage", how)
    assert (result["answer"], result["garbage"]) == (42, 5)


@pytest.mark.parametrize("how", HOWS)
def test_a_grandchild_in_a_session_of_its_own_goes_too(driven: Driven, how: str) -> None:
    """It falls to probe, the subreaper, and is killed and reaped there."""
    result = driven("leave_a_setsid_grandchild", how)
    assert (result["answer"], result["survivors"]) == (42, [])


@pytest.mark.parametrize("how", HOWS)
def test_a_kill_that_was_not_ours_is_unknown(driven: Driven, how: str) -> None:
    """A SIGKILL from outside, the OOM killer's or an operator's, says nothing about the GPU."""
    result = driven("be_killed", how)
    assert (result["status"], result["data"]["reason"]) == ("unknown", "killed")


@pytest.mark.parametrize("how", HOWS)
def test_a_kill_that_does_not_work_is_given_up_in_time(how: str) -> None:
    """As in state D: told to die, it does not; after the bound it is named as a survivor, and nobody waits."""
    driven = Driven()
    result = driven("hang", how, kill_after_s=0.3, deaf=True)
    assert result["pid"] in result["survivors"]
    assert 0.5 <= result["reaped_s"] < 1.0
    assert result["status"] == "timeout"
    pids = driven.left()  # drive.py has gone, and they die with it: PR_SET_PDEATHSIG
    for pid in pids:
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


def test_a_foreign_program_is_tied_to_probe_and_its_output_is_kept(tmp_path: Path) -> None:
    """Its fd 1 is the reply pipe, cwd is what was asked, no shell takes part, stderr is drained beside it."""
    children = Children()
    process = children.start_foreign(["/bin/pwd"], worker="command", cwd=str(tmp_path))
    events = []
    while process in children.alive:
        events += children.poll(5)
    assert bytes(process.output).decode().strip() == str(tmp_path)
    assert events == [End(process, Exit(status=0))]


def test_a_foreign_program_that_is_not_there_ends_with_127() -> None:
    """As a shell would say it, with its name on stderr."""
    children = Children()
    process = children.start_foreign(["/no/such/program"], worker="command")
    while process in children.alive:
        children.poll(5)
    assert b"/no/such/program: No such file" in process.tail


def test_an_interpreter_that_cannot_be_executed_raises() -> None:
    """OSError, with nothing left open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="No such file"):
        Children().start("files", {}, worker="files", python="/no/such/python")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1  # the epoll of Children, until it is collected


def test_below_3_11_the_working_directory_is_taken_out_by_the_first_statement() -> None:
    """-P came with 3.11; before it `-c` whose first statement removes sys.path[0] does the same."""
    assert bootstrap("child", (3, 11))[0] == "-P"
    code = bootstrap("child", (3, 9))
    assert code[0] == "-c"
    assert code[1].startswith("import sys; sys.path[:1] = []")


@pytest.mark.parametrize("version", [(3, 9), (3, 12)])
def test_a_hostile_torch_in_the_working_directory_is_not_imported(tmp_path: Path, version: tuple[int, int]) -> None:
    """Least of all by root: children start in / and without the working directory on their path."""
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "torch.py").write_text("raise SystemExit('hijacked')")
    code = (
        "import os; from probe.worker.parent import Children, Line\n"
        "children = Children()\n"
        f"process = children.start('files', {{'exists': ['/']}}, worker='files', version={version})\n"
        "heard = []\n"
        "while process in children.alive: heard += children.poll(5)\n"
        "print([event.line for event in heard if isinstance(event, Line)])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, timeout=30, check=True, text=True
    )
    assert '"exists:/"' in done.stdout
    assert "hijacked" not in done.stdout + done.stderr


def test_the_end_of_a_child_is_not_the_end_of_its_pipe() -> None:
    """A sibling that holds a dead child's pipe open delays nobody: the pidfd tells."""
    children = Children()
    holder = children.start_foreign(["/bin/sh", "-c", "sleep 600 & exit 3"], worker="command")
    events = []
    while holder in children.alive:
        events += children.poll(5)
    assert events == [End(holder, Exit(status=3))]
    os.killpg(holder.pid, signal.SIGKILL)


def test_frames_tell_the_innermost_first() -> None:
    """A faulthandler dump has the most recent call first; file, line and function are kept."""
    dump = (
        b"Timeout (0:00:00.500000)!\nThread 0x00007f (most recent call first):\n"
        b'  File "/x/worker/cuda.py", line 88 in _call\n  File "/x/worker/cuda.py", line 140 in main\n'
    )
    assert frames(dump) == "cuda.py:88 _call < cuda.py:140 main"


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (Exit(status=3), "ended with status 3"),
        (Exit(signal=15), "ended by SIGTERM"),
        (Exit(), "ended, nobody knows how"),
    ],
)
def test_how_an_end_is_said(exit_: Exit, words: str) -> None:
    """A signal has its name."""
    assert how(exit_) == words


def test_an_oom_kill_is_told_from_a_kill_by_somebody() -> None:
    """The cgroup's oom_kill count rose meanwhile: the memory limit did it."""
    finding = ending("torch", Exit(signal=9), oom_kills=1, step="import torch")
    assert (finding.data["reason"], finding.data["oom_kills"]) == ("oom_killed", 1)
