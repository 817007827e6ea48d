"""What must hold around one run of a check or a gate from its first line on: no strangers, nets, signals.

::

    begin()   already has children (a shell that started some, then exec'd probe)?  fork: the run gets a clean process
              nets armed with the budget as far as argv and environment tell it
              SIGINT, SIGTERM: leave at once, with nothing left behind

Standard library only: all of this is in place before the first slow import.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from probe import exits
from probe.clock import DEFAULT_BUDGET_S, GATE_BUDGET_S, SMALLEST_BUDGET_S, Budget, parse_duration
from probe.nets import Nets
from probe.output import asked_format, instead_of_report, write
from probe.worker.parent import become_subreaper, children_of_this_process

LAST_WORDS_S = 0.05
INTERRUPTS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Attempt:
    """The one run of this process: its budget, its nets, and how it leaves when it is told to or too late."""

    def __init__(self) -> None:
        self.budget = Budget(time.monotonic(), DEFAULT_BUDGET_S)
        self.nets = Nets()
        self.column = exits.DEFAULT
        self.leave: Callable[[str], None] = self._leave_early
        """Say what is known and leave; told why: "late", "interrupted" or "terminated". Does not return."""

    def watch(self, budget: Budget) -> None:
        """Arm the nets for `budget`; again when it turns out to be another."""
        self.budget = budget
        self.nets.arm(budget, lambda: self.leave("late"))

    def interruptible(self) -> None:
        """SIGINT and SIGTERM leave at once, through `leave`."""
        for number in INTERRUPTS:
            signal.signal(number, _interrupted)

    def _leave_early(self, why: str) -> None:
        what = "undetermined" if why == "late" else why
        words = "probe itself was held up" if why == "late" else f"probe was {why}"
        text = f"{what}: {words} before it could start"
        form = asked_format(sys.argv)
        said = instead_of_report(form, text)
        if form == "json":
            said = f'{{"schema":"probe.error/1","message":"{text}","where":"probe","allowed":[]}}\n'.encode()
        write(1, said, time.monotonic() + LAST_WORDS_S)
        if self.column == "slurm":
            write(2, f"{text}\n".encode(), time.monotonic() + LAST_WORDS_S)
        os._exit(exits.code(self.column, what, liveness=exits.liveness(sys.argv[1:], os.environ)))


CURRENT = Attempt()


def begin(column: str) -> None:
    """Prepare this process for a run, whose budget began with the interpreter."""
    CURRENT.column = column
    budget = Budget.starting_with_this_process(_early_budget_s())
    _fill_standard_descriptors()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would reap our children before we can ask
    if children_of_this_process():
        _in_a_process_of_its_own(column)
    become_subreaper()
    CURRENT.interruptible()
    CURRENT.watch(budget)


def _fill_standard_descriptors() -> None:
    """A descriptor that the caller closed must not become one of our pipes: the report would go into it."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one


def _early_budget_s() -> float:
    """The budget by flag or environment; the file's is not known yet, and nonsense is complained of later."""
    gate = "gate" in sys.argv[1:]  # PROBE_BUDGET is a check's: a container sets it for its own
    text = "" if gate else os.environ.get("PROBE_BUDGET", "")
    for at, word in enumerate(sys.argv):
        if word == "--budget" and at + 1 < len(sys.argv):
            text = sys.argv[at + 1]
        elif word.startswith("--budget="):
            text = word.partition("=")[2]
    try:
        return max(parse_duration(text), SMALLEST_BUDGET_S)
    except ValueError:
        return GATE_BUDGET_S if gate else DEFAULT_BUDGET_S


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Leave, unless this very handler is leaving already: impatience must not cut the clean-up short, nor rename it."""
    while frame is not None:
        if frame.f_code is _interrupted.__code__:
            return
        frame = frame.f_back
    CURRENT.leave(INTERRUPTS[signal.Signals(number)])


def _in_a_process_of_its_own(column: str) -> None:
    """Return in a fork of this process, which has children already; the original waits for it and leaves as it does.

    A run ends by killing all children there are. Those that were there before it are somebody's job.
    """
    from probe.worker.child import tie_to

    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        tie_to(parent)
        return
    for number in INTERRUPTS:
        signal.signal(number, lambda number, frame: os.kill(pid, number))
    _, wait_status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(wait_status)
    _leave(code if code >= 0 else exits.code(column, "internal"))


def _leave(code: int) -> NoReturn:
    os._exit(code)
