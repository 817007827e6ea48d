"""What goes on, on a terminal's stderr: a bar by rich where rich is installed, else a line for each program.

Without a terminal nothing is written. rich refreshes from here, not from a thread of its own.
"""

import os
import time
from collections.abc import Iterable
from typing import IO, Any, cast

from probe.measure.model import Done
from probe.measure.shares import Entry
from probe.output import write
from probe.redact import clean

STDERR = 2
SHOWN = 40
"""Characters of a line's words: with bar and time they fill 80 columns."""
HELD_S = 0.02
"""How long a terminal that does not take it holds up one piece of progress."""


class Progress:
    def __init__(self, entries: Iterable[Entry]) -> None:
        self._on = os.isatty(STDERR) and os.environ.get("TERM") != "dumb"
        self._what = {entry.name: f"{entry.name}: {entry.what}" for entry in entries}
        self._bar: Any = None
        self._task: Any = None

    def begin(self, name: str) -> None:
        if not self._on:
            return
        if self._bar is None:
            self._bar = _bar()
        if self._bar is not None:
            self._task = self._bar.add_task(self._what[name], total=None)

    def tick(self) -> None:
        if self._task is not None:
            self._bar.refresh()

    def end(self, name: str, status: Done, reason: str, results: int) -> None:
        if not self._on:
            return
        words = clean(f"{name}: {status} ({reason or f'{results} figures'})")
        if self._task is not None:
            self._bar.update(self._task, description=words, total=1.0, completed=1.0)
            self._bar.refresh()
            self._task = None
        elif self._bar is None:
            write(STDERR, f"{words}\n".encode("utf-8", "replace"), time.monotonic() + 0.05)

    def stop(self) -> None:
        """Take the bars back: the table says it all."""
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._task, self._on = None, None, False


class Sink:
    """stderr for rich: a terminal that is held (Ctrl-S) must not hold the run."""

    def write(self, text: str) -> int:
        write(STDERR, text.encode("utf-8", "replace"), time.monotonic() + HELD_S)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def _bar() -> Any:
    """Bars of rich, started; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        return None
    columns = (
        TextColumn(f"{{task.description:<{SHOWN}.{SHOWN}}}", markup=False),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    bars = Bars(
        *columns,
        console=Console(file=cast("IO[str]", Sink()), force_terminal=True, width=_width()),
        auto_refresh=False,
        transient=True,
    )
    bars.start()
    return bars


def _width() -> int:
    try:
        return os.get_terminal_size(STDERR).columns or 80
    except OSError:
        return 80
