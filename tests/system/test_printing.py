"""What goes to stdout, what to stderr, when, and what only to a terminal."""

import os
import pty
import re
import select
import sys
from pathlib import Path

import pytest

from tests.system.command import ARGV, BOUND_S, Command, fake_torch, finish

FAST = ("--only", "device.stuck")
NOISE = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
print("torch prints"); sys.stderr.write("torch complains\\n"); sys.stdout.flush()
os.write(1, b"C prints\\n" * 2000)
os.write(2, b"C complains\\n" * 2000)
raise ImportError("noisy")
"""
ESCAPE = "\x1b["


def test_stderr_is_silent_where_all_is_well(probe: Command) -> None:
    """Not a terminal: no progress, no word."""
    ran = probe.text()
    assert (ran.code, ran.err) == (0, "")


def test_what_children_print_reaches_nobody(probe: Command, tmp_path: Path) -> None:
    """Libraries print from Python and from C, on either: stdout is the report alone, stderr stays silent."""
    ran = probe.check(env={"PYTHONPATH": fake_torch(tmp_path / "noisy", NOISE)})
    assert (ran.code, ran.err) == (1, "")
    assert "noisy" in ran.outcome("torch.import")["summary"]


def test_stderr_comes_after_the_verdict_and_is_short(probe: Command) -> None:
    """Both on one pipe, with as much to complain of as can be: the verdict is first, then at most 512 bytes."""
    env = {f"PROBE_NONSENSE_{'X' * 40}_{number}": "1" for number in range(40)}
    env |= {"ENABLE_SHM_CHECK": "perhaps", "ENABLE_LIMITS_CHECK": "nonsense"}
    probe.state.write_text("no folder")
    apart = probe.text(*FAST, env=env)
    assert apart.err
    assert len(apart.err.encode()) <= 512
    argv = ["sh", "-c", 'exec "$@" 2>&1', "sh", *probe.check_argv(*FAST)]
    together = probe.run(argv, env=env)
    assert together.first_line.startswith("healthy: ")
    assert together.out.index("probe: ") >= len(apart.out)


def test_the_first_line_is_the_verdict_with_cause_and_remedy(probe: Command, tmp_path: Path) -> None:
    """At most 200 characters; what it says is enough to act on."""
    env = {"PYTHONPATH": fake_torch(tmp_path / "broken", "raise ImportError('x' * 5000)\n")}
    ran = probe.text(env=env)
    assert ran.first_line.startswith("unhealthy: ")
    assert len(ran.first_line) <= 200
    assert re.search(r"\[(user|image)\]", ran.first_line)
    assert len(ran.out.encode()) <= 4096


def test_a_secret_in_an_error_of_torch_is_not_shown(probe: Command, tmp_path: Path) -> None:
    """Redacted at the report's edge, in both formats."""
    env = {
        "PYTHONPATH": fake_torch(tmp_path / "leaks", "raise ImportError('https://me:hunter2@host/?token=hunter2')\n")
    }
    assert "hunter2" not in probe.text(env=env).out
    assert "hunter2" not in probe.check(env=env).out


def test_debug_shows_a_traceback_only_when_asked(probe: Command) -> None:
    """And then after the verdict."""
    ran = probe.text(*FAST, "--debug")
    assert (ran.code, ran.err) == (0, "")


class Terminal:
    """A pseudo-terminal, and what was shown on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.shown = ""

    def read_until(self, word: str) -> str:
        """What was shown up to and with `word`; raise TimeoutError when it does not come."""
        while word not in self.shown:
            if not select.select([self.ours], [], [], BOUND_S)[0]:
                raise TimeoutError(self.shown)
            self.shown += os.read(self.ours, 4096).decode()
        return self.shown

    def rest(self) -> str:
        os.close(self.theirs)
        while True:
            try:
                data = os.read(self.ours, 4096)
            except OSError:  # EIO: nobody has the other end any more
                break
            if not data:
                break
            self.shown += data.decode()
        os.close(self.ours)
        return self.shown


def test_a_terminal_sees_each_check_as_it_finishes(probe: Command, tmp_path: Path) -> None:
    """While torch is still being imported, what has finished is on stderr; the verdict goes to stdout alone."""
    fifo = tmp_path / "go"
    os.mkfifo(fifo)
    init = f"open({str(fifo)!r}).read()\nraise ImportError('at last')\n"
    env = {"PYTHONPATH": fake_torch(tmp_path / "slow", init), "TERM": "xterm", "NO_COLOR": "1"}
    terminal = Terminal()
    with probe.started(probe.check_argv(), env=env, stderr=terminal.theirs) as process:
        early = terminal.read_until("device.shm")
        assert "torch.import" not in early
        fifo.write_text("")
        ran = finish(process)
    shown = terminal.rest()
    assert "torch.import" in shown
    assert ESCAPE not in shown
    assert ran.first_line.startswith("unhealthy: ")
    assert "unhealthy" not in shown


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
    ids=["plain", "NO_COLOR", "dumb", "both"],
)
def test_colour_is_for_terminals_that_want_it(probe: Command, env: dict[str, str], coloured: bool) -> None:
    """https://no-color.org; a dumb terminal gets none and no progress."""
    terminal = Terminal()
    argv = probe.check_argv(*FAST)
    with probe.started(argv, env={"TERM": "xterm", **env}, stdout=terminal.theirs) as process:
        ran = finish(process)
    shown = terminal.rest()
    assert (ran.code, ran.err) == (0, "")
    assert (ESCAPE in shown) is coloured
    assert "healthy" in shown


def test_a_pipe_gets_no_colour(probe: Command) -> None:
    """Unless it is forced."""
    assert ESCAPE not in probe.text(*FAST, env={"TERM": "xterm"}).out
    assert ESCAPE in probe.text(*FAST, env={"FORCE_COLOR": "1"}).out


def test_on_one_terminal_progress_is_taken_back(probe: Command) -> None:
    """The report is what stays; no line of it is doubled below it."""
    terminal = Terminal()
    with probe.started(
        probe.check_argv("--only", "device"),
        env={"TERM": "xterm", "NO_COLOR": "1"},
        stdout=terminal.theirs,
        stderr=terminal.theirs,
    ) as process:
        assert finish(process).code == 0
    shown = terminal.rest()
    assert shown.count("healthy: ") == 1


WORDY = [
    ("list",),
    ("explain",),
    ("explain", "NVML_HANGS"),
    ("config",),
    ("--help",),
    ("check", "--help"),
    ("check", "-h"),
]


@pytest.mark.parametrize("args", WORDY, ids=" ".join)
def test_a_reader_that_has_read_enough_is_no_error(probe: Command, args: tuple[str, ...]) -> None:
    """``probe list | head -1``: nobody reads the rest, and nothing is wrong."""
    reader, writer = os.pipe()
    os.close(reader)
    with probe.started([*ARGV, *args], stdout=writer) as process:
        os.close(writer)
        ran = finish(process)
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize("args", WORDY, ids=" ".join)
def test_a_full_disk_is_an_exit_code_and_no_internal_error(probe: Command, args: tuple[str, ...]) -> None:
    """Its reader has not got what was asked for, so not 0."""
    with Path("/dev/full").open("w") as full, probe.started([*ARGV, *args], stdout=full) as process:
        ran = finish(process)
    assert (ran.code, ran.err) == (3, "")


@pytest.mark.parametrize("command", [("--help",), ("check", "--help"), ("--version",)])
def test_help_imports_nothing_heavy(probe: Command, command: tuple[str, ...]) -> None:
    """None of torch, asyncio, httpx, asyncssh, anyio, rich and pynvml."""
    ran = probe.run([sys.executable, "-X", "importtime", "-m", "probe", *command])
    assert ran.code == 0
    assert imported(ran.err).isdisjoint({"torch", "asyncio", "httpx", "asyncssh", "anyio", "rich", "pynvml", "numpy"})


@pytest.mark.parametrize("args", [("--profile", "liveness"), (), ("--only", "cuda")], ids=["liveness", "all", "cuda"])
def test_a_check_imports_no_torch_of_its_own(probe: Command, args: tuple[str, ...]) -> None:
    """Torch and NVML are imported in children only; httpx and asyncssh are of no use here."""
    ran = probe.run([sys.executable, "-X", "importtime", *probe.check_argv(*args)[1:]])
    assert imported(ran.err).isdisjoint({"torch", "httpx", "asyncssh", "rich", "pynvml", "numpy"})
    assert "probe.engine" in modules(ran.err)


def modules(importtime: str) -> set[str]:
    return {line.rpartition("|")[2].strip() for line in importtime.splitlines() if line.startswith("import time:")}


def imported(importtime: str) -> set[str]:
    return {name.partition(".")[0] for name in modules(importtime)}
