"""One run of probe on a machine where something hangs, looked at from outside.

::

    host.py (a fake GPU host) -> dead_mount.py (/dev/shm) -> env BENCH_MARK=... -> probe check --budget 3s
    each execs the next, so all of it is one process, and its age counts from the first (0.1 to 0.2 s)

This process is a subreaper: whatever a run leaves falls to it, zombies too, and is counted. Beside that the environment
of every process of the machine is searched for the run's mark.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bench.measure import ROOT, environment

LAUNCHED_S = 1.0
"""By then the launchers have done, and no run ends before: with a budget of 3 s the first bar is at 2 s."""
GIVE_UP_S = 15.0
HELPERS_S = 2.0
PR_SET_CHILD_SUBREAPER = 36
TORCHES = {
    "sleeps": "import time\ntime.sleep(3600)\n",
    "holds the GIL": "import ctypes\nctypes.PyDLL(None).pause()  # a call by PyDLL does not release it\n",
    "spins": "while True:\n    pass\n",
}


class Run(NamedTuple):
    """What was seen of it from outside."""

    took_s: float
    exit_code: int
    report: bytes
    stderr: str
    left: list[str]
    """Whoever was still there at its end, in words."""


def become_subreaper() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


# ---- what hangs ------------------------------------------------------------------------------------------------------


def on_host(scenario: Path) -> list[str]:
    """The launcher of a command on a fake GPU host."""
    return [sys.executable, "-S", "-E", str(ROOT / "tests" / "fakes" / "host.py"), str(scenario), "--"]


def on_dead_mount() -> list[str]:
    """The launcher of a command for which /dev/shm never answers."""
    return [sys.executable, "-S", "-E", str(ROOT / "bench" / "dead_mount.py")]


def no_fakes() -> str:
    """Why there can be no fake GPU host here; empty where there can."""
    if os.geteuid():
        return "needs root"
    scenario = ROOT / "tests" / "hosts" / "h100x1.toml"
    argv = [*on_host(scenario), *on_dead_mount(), "true"]
    tried = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return tried.stderr.strip().rpartition("\n")[2] if tried.returncode else ""


def hanging_torch(way: str, folder: Path, *, cuda: bool) -> str:
    """A PYTHONPATH on which ``import torch`` hangs; its version.py speaks of a CUDA build, or of a CPU build."""
    package = folder / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(TORCHES[way])
    (package / "version.py").write_text(f"__version__ = '2.11.0'\ncuda = {'12.8' if cuda else None!r}\nhip = None\n")
    return ":".join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


@contextmanager
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that takes no byte more and that nobody reads."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write_fd, b"x" * select.PIPE_BUF)
    os.set_blocking(write_fd, True)
    try:
        yield write_fd
    finally:
        os.close(read_fd)
        os.close(write_fd)


@contextmanager
def file_of(path: Path) -> Iterator[int]:
    with path.open("wb") as file:
        yield file.fileno()


# ---- the run ---------------------------------------------------------------------------------------------------------


def run(launchers: Sequence[str], probe: Sequence[str], folder: Path, *, unread: bool, python_path: str) -> Run:
    """Run `probe` by `launchers`, with what it writes in `folder`, and look at the machine at once after its end."""
    mark = f"BENCH_MARK={folder.name}-{os.getpid()}"
    argv = [*launchers, "env", mark, *probe]
    env = environment(PYTHONPATH=python_path) if python_path else environment()
    report, stderr = folder / "stdout", folder / "stderr"
    others = children()  # the servers that a run is to ask
    with full_pipe() if unread else file_of(report) as out, file_of(stderr) as err:
        began = time.monotonic()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env)
        helpers = wait(process, began) - others
        took_s = time.monotonic() - began
        exit_code = process.wait(1)
        left = left_behind(mark, helpers | others)
    bury(helpers)
    said = b"" if unread else report.read_bytes()
    return Run(took_s, exit_code, said, stderr.read_text("utf-8", "replace"), left)


def wait(process: "subprocess.Popen[bytes]", began: float) -> set[int]:
    """Until its end; returns what its launchers put aside to serve it, which ends when it does.

    While probe lives it is a subreaper itself: nothing of its own can have fallen to us yet.
    """
    pidfd = os.pidfd_open(process.pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll((began + LAUNCHED_S - time.monotonic()) * 1000)
    helpers = children() - {process.pid}
    if not poller.poll((began + GIVE_UP_S - time.monotonic()) * 1000):
        process.kill()
        poller.poll(1000)
    os.close(pidfd)
    return helpers


def children() -> set[int]:
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def left_behind(mark: str, helpers: set[int]) -> list[str]:
    """Whoever of a run is still there, zombies included; killed once it is told."""
    marked = {int(path.name) for path in Path("/proc").glob("[0-9]*") if mark in environ(path)}
    orphans = children() - helpers
    words = [described(pid) for pid in marked | orphans]
    for pid in orphans:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    bury(orphans)
    return words


def environ(path: Path) -> list[str]:
    try:
        return (path / "environ").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:  # it has ended; or it is a zombie, and then our child
        return []


def described(pid: int) -> str:
    """Its state and its command line, as far as it is still there."""
    with suppress(OSError):
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        return f"{rest.split()[0]} {words.strip() or name.partition('(')[2]}"
    return "gone a moment later"


def bury(pids: set[int]) -> None:
    """Reap children that are ending; one that does not end is this bench's own defect, or one more left behind."""
    until = time.monotonic() + HELPERS_S
    while pids := {pid for pid in pids if os.waitpid(pid, os.WNOHANG) == (0, 0)}:
        if time.monotonic() > until:
            raise RuntimeError(f"still there after {HELPERS_S:g} s: {', '.join(map(described, pids))}")
        time.sleep(0.005)
