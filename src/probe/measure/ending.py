"""How a bench ends: once, whoever ends it, and never in silence.

::

    its end, a signal, a defect   -> first: the results are written, with their exit code; then everything goes
    the net ("late"), after that  -> says what held the writing up, and leaves
"""

import os
import time
import traceback
from collections.abc import Callable

from probe import exits
from probe.attempt import CURRENT, LAST_WORDS_S
from probe.output import write


class Ending:
    """The one end of a run."""

    def __init__(self) -> None:
        self.begun = False
        self.doing = "the last children"
        """What is waited for at the moment; whoever writes says so here."""
        self._code = exits.code(CURRENT.column, "internal")
        """Until all is written: an end that was cut off is no success."""

    def leave(self, why: str, write_all: Callable[[], int], clear_up: Callable[[], None]) -> None:
        """Write, clear up and leave the process. `why`: "" at the regular end, else what ends it.

        Returns only to a signal that came during the end itself, which is bounded and goes on.
        """
        if self.begun and why != "late":
            return
        first, self.begun = not self.begun, True
        try:
            if first:
                self._code = write_all()
                self.doing = ""
            elif self.doing:
                _complain(f"bench could not write its results in time: held up by {self.doing}")
        except Exception as error:  # noqa: BLE001 - a defect in the report must not end in silence
            _complain(f"bench could not write its results: {defect(error)}")
        finally:
            try:
                clear_up()
            finally:
                os._exit(self._code)


def _complain(words: str) -> None:
    write(2, f"probe: {words}\n".encode("utf-8", "replace"), time.monotonic() + LAST_WORDS_S)


def defect(error: BaseException) -> str:
    """An exception of probe's own in one line, with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f", in {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def reason_of(why: str) -> str:
    """Why a program is not done, in the middle of which the run ended."""
    return "not done in time" if why in ("", "late") else why
