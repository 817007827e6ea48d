"""``probe check --wait``: attempts, each in a process and with a budget of its own, until one is healthy.

For entrypoints and init containers. The waiting process imports nothing that could hang and holds no GPU; it prints
the last attempt's report on stdout, and on stderr a line for each that was not the last.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

from probe import exits
from probe.attempt import CURRENT, INTERRUPTS, LAST_WORDS_S
from probe.clock import SMALLEST_BUDGET_S, Budget
from probe.output import write
from probe.worker.child import tie_to

PAUSE_S = 2.0
"""Between attempts: long enough that a host that is still starting is not kept from it by our imports of torch."""
GOOD = ("healthy", "degraded")

RunOnce = Callable[[float, int], NoReturn]
"""Given a budget in seconds and a descriptor for the verdict's word, runs and leaves the process."""


class Result(NamedTuple):
    code: int
    verdict: str
    output: bytes


class Waiter:
    def __init__(self, budget_s: float, run: RunOnce) -> None:
        self._budget_s = budget_s
        self._run = run
        self._pid = 0
        self._interrupted: signal.Signals | None = None
        self._last: Result | None = None

    def wait(self, wait_s: float) -> int:
        """Attempt until the verdict is good or `wait_s` have passed.

        Returns the exit code of the attempt whose output is shown: the good one, else the last with a whole budget.
        """
        until = CURRENT.budget.began_at + wait_s
        CURRENT.nets.disarm()
        for number in INTERRUPTS:
            signal.signal(number, self._interrupt)
        attempts, whole = 0, None
        while True:
            attempts += 1
            left_s = until - time.monotonic()
            last = self._attempt(max(min(self._budget_s, left_s), SMALLEST_BUDGET_S))
            if left_s >= self._budget_s or whole is None:
                whole = last  # one whose budget was cut short may have failed for that alone
            over = until - time.monotonic() < PAUSE_S + SMALLEST_BUDGET_S
            if last.verdict in GOOD or over or self._interrupted:
                shown = last if last.verdict in GOOD or self._interrupted else whole
                write(1, shown.output, time.monotonic() + self._budget_s)
                return shown.code
            self._last = last
            _reap_orphans()
            first = last.verdict.encode() if last.output.startswith(b"{") else last.output.partition(b"\n")[0]
            write(2, b"probe: attempt %d: %s\n" % (attempts, first), time.monotonic() + 0.1)
            time.sleep(PAUSE_S)

    def _interrupt(self, number: int, _frame: object) -> None:
        """Hand the signal to the attempt, which reports and leaves; between two attempts there is nobody to ask."""
        self._interrupted = signal.Signals(number)
        if not self._pid:
            if self._last is not None:
                write(1, self._last.output, time.monotonic() + LAST_WORDS_S)
            os._exit(exits.code(CURRENT.column, INTERRUPTS[self._interrupted]))
        with suppress(ProcessLookupError):  # it is our child and not reaped yet: the number is still its own
            os.kill(self._pid, number)

    def _attempt(self, budget_s: float) -> Result:
        output, word = os.memfd_create("probe-output"), os.memfd_create("probe-verdict")
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # until both processes know who they are
        pid = os.fork()
        if pid == 0:
            tie_to(parent)
            os.dup2(output, 1)
            CURRENT.interruptible()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
            CURRENT.watch(Budget(time.monotonic(), budget_s))
            self._run(budget_s, word)
        self._pid = pid
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        code = self._end_of(pid, budget_s + 1.0)  # its nets end it before that: this is for a net with a hole
        self._pid = 0
        verdict = _content(word).decode()
        if not verdict and code == 0:  # it left without a verdict: that is no health
            code = exits.code(CURRENT.column, "internal")
        return Result(code, verdict, _content(output))

    def _end_of(self, pid: int, bound_s: float) -> int:
        """The exit code of an attempt, killed after `bound_s`."""
        pidfd = os.pidfd_open(pid)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(bound_s * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poller.poll(1000)
        os.close(pidfd)
        found, wait_status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(wait_status) if found else -1
        return code if code >= 0 else exits.code(CURRENT.column, "internal")


def _reap_orphans() -> None:
    """What an attempt that its nets ended left to us, the subreaper."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _content(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb") as file:
        return file.read()
