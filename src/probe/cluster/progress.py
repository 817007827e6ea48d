"""The gate as it goes, on a terminal's stderr: what is tested now, what is known so far.

With rich a few lines that are drawn anew; without it one line for each change. Taken away when the report comes.
"""

import time
from collections import Counter
from typing import Any

from probe.clock import Budget
from probe.cluster.hosts import fold
from probe.cluster.ledger import Ledger
from probe.output import write
from probe.redact import clean

MOST_NAMED = 6
WRITE_S = 0.05


class Progress:
    def __init__(self, ledger: Ledger, budget: Budget) -> None:
        self._ledger = ledger
        self._budget = budget
        self._said = ""
        self._known: list[str] = []
        self._live: Any = None
        ledger.changed = self._line
        try:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(get_renderable=self._table, console=Console(stderr=True), transient=True)
            self._live.start()
            ledger.changed = self._take_note
        except ImportError:
            return

    def _take_note(self) -> None:
        """Here, in the gate's own thread: rich draws in one of its own, and must not read what is being written."""
        self._known = known(self._ledger)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _line(self) -> None:
        if self._ledger.testing != self._said:
            self._said = self._ledger.testing
            words = f"{self._budget.elapsed_s():6.1f} s  {self._ledger.phase.value:<8}  {clean(self._said)}\n"
            write(2, words.encode("utf-8", "replace"), time.monotonic() + WRITE_S)

    def _table(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        elapsed = f"{self._budget.elapsed_s():.0f} of {self._budget.budget_s:.0f} s"
        table.add_row(Spinner("line"), Text(f"{self._ledger.phase.value}: {clean(self._ledger.testing)}  ({elapsed})"))
        for words in self._known:
            table.add_row("", Text(clean(words)))
        return table


def known(ledger: Ledger) -> list[str]:
    """What is known so far, in a few lines."""
    lines = [f"{len(ledger.members)} of {len(ledger.hosts)} hosts reached, {len(ledger.nodes)} checked"]
    states = Counter(problem.state.value for problem in ledger.out.values())
    for state in states:
        names = [host for host, problem in ledger.out.items() if problem.state.value == state]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        first = ledger.out[names[0]].summary
        lines.append(f"{state}: {fold(names[:MOST_NAMED])}{more}: {first}"[:160])
    if ledger.rounds:
        last = ledger.rounds[-1]
        passed = sum(result.startswith("passed") for result in last.results)
        lines.append(f"round {last.n} ({last.kind}): {passed} of {len(last.results)} passed in {last.elapsed_s:.1f} s")
    if ledger.planner is not None:
        diagnosis = ledger.planner.diagnosis()
        lines += [f"{ledger.players[host].name}: {words}"[:160] for host, words in list(diagnosis.bad.items())[:4]]
    return lines
