"""The bootstrap of every child: it ties the process to its parent, then runs one program of this folder.

::

    probe --spawn--> child.py <program> <reply fd> <parent pid> <limit s> <job>
                       | 1. dies with its parent        prctl(PR_SET_PDEATHSIG)
                       | 2. arms its own limit          faulthandler prints where it hung, then leaves
                       | 3. loads <program> by its path and calls main(child, job)
                       v
             fd 3: JSON lines, one `Record` each        fd 1 and 2: the stderr pipe, whatever C prints

Standard library only and Python >= 3.9: the interpreter that has torch may not be the one that has probe.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import sys
import threading
import time
from importlib.machinery import SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False  # typing is 2 ms of every child's start; importlib.util and traceback are 5 more
if TYPE_CHECKING:
    from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def tie_to(parent_pid: int) -> None:
    """Die when `parent_pid` does. To be called first in a process, and again after every fork (not inherited)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the call above took hold
        os._exit(0)


def load(path: str) -> ModuleType:
    """Import one file by its path, so that nothing else of its folder can be imported by accident."""
    name = "probe_worker_" + os.path.splitext(os.path.basename(path))[0]
    module = ModuleType(name)
    module.__file__ = path
    SourceFileLoader(name, path).exec_module(module)
    return module


class Child:
    """The worker's side of the conversation: what it may say, and its limit."""

    load = staticmethod(load)
    tie_to = staticmethod(tie_to)

    def __init__(self, reply_fd: int) -> None:
        self.reply_fd = reply_fd
        self._lock = threading.Lock()

    def say(
        self, key: str, target: str = "", code: int | None = None, text: str = "", elapsed_s: float = 0.0, **data: Any
    ) -> None:
        """Send one record; its fields are those of `probe.model.Record`."""
        record: dict[str, Any] = {"key": key, "target": target, "text": text, "elapsed_s": round(elapsed_s, 6)}
        if code is not None:
            record["code"] = code
        if data:
            record["data"] = data
        line = memoryview((json.dumps(record) + "\n").encode())
        with self._lock:
            while line:
                line = line[os.write(self.reply_fd, line) :]

    def step(self, name: str, target: str = "") -> None:
        """Say what is about to be called, so that a hang or a crash in it has a name."""
        self.say("step", target, text=name)

    def timed(self) -> Stopwatch:
        return Stopwatch()

    def limit(self, seconds: float) -> None:
        """Leave with exit status 1 and every thread's stack on stderr when `seconds` have passed; 0: no limit."""
        if seconds > 0:
            faulthandler.dump_traceback_later(seconds, exit=True)
        else:
            faulthandler.cancel_dump_traceback_later()

    def run(self, program: ModuleType, job: dict[str, Any]) -> NoReturn:
        """Call ``program.main(child, job)`` and leave without interpreter shutdown (torch's costs 0.5 s)."""
        try:
            program.main(self, job)
        except BaseException:  # noqa: BLE001 - whatever it is, the parent is told, and nobody else can
            import traceback

            self.say("error", text=traceback.format_exc())
            os._exit(70)
        os._exit(0)


class Stopwatch:
    """Seconds since it was made, as a call."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def __call__(self) -> float:
        return time.perf_counter() - self._started


def age_s() -> float:
    """Seconds since this process was forked: its limit counts from there, and a loaded machine starts slowly."""
    with open("/proc/self/stat", "rb") as stat:
        ticks = int(stat.read().rpartition(b")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def main() -> NoReturn:
    program, reply_fd, parent_pid, limit_s, job = sys.argv[1:6]
    tie_to(int(parent_pid))
    os.set_inheritable(int(reply_fd), False)
    child = Child(int(reply_fd))
    child.limit(max(float(limit_s) - age_s(), 0.05) if float(limit_s) else 0.0)
    child.run(load(program), json.loads(job))


if __name__ == "__main__":
    main()
