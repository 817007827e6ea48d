"""Two nets under a run, for when its own event loop is what hangs.

::

    budget - 0.1 s    a daemon thread says the verdict of what is known so far, kills the children, leaves with its code
    budget + 0.05 s   faulthandler's C thread ends the process with code 1, even while a C call holds the GIL

The second gives no verdict: it is the last resort. It prints into a memory file, because on a stderr that nobody reads
it would never exit (tried).
"""

import faulthandler
import os
import threading
from collections.abc import Callable

from probe.clock import Budget


class Nets:
    """Armed from probe's first line to its last; re-armed for each attempt and when the real budget is known."""

    def __init__(self) -> None:
        self._off = threading.Event()
        self._thread: threading.Thread | None = None
        self._file = os.fdopen(os.memfd_create("probe-last-resort"), "w")

    def arm(self, budget: Budget, leave: Callable[[], None]) -> None:
        """Call `leave`, from another thread, when `budget` is nearly over; it must not return."""
        self.disarm()
        off = self._off = threading.Event()

        def wait() -> None:
            if not off.wait(budget.left_s(budget.net_s)):
                leave()

        self._thread = threading.Thread(target=wait, name="net", daemon=True)
        self._thread.start()
        faulthandler.dump_traceback_later(budget.left_s(budget.last_resort_s), exit=True, file=self._file)

    def disarm(self) -> None:
        """Take both away, thread and timer: before a fork neither may be there."""
        self._off.set()
        if self._thread is not None:
            self._thread.join(1.0)
            self._thread = None
        faulthandler.cancel_dump_traceback_later()
