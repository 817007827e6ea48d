"""What children say, gathered for a caller that waits for one program at a time.

No event loop: a bench does one thing after another, and `Children.poll` is bounded by itself.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from probe.model import Finding, Record
from probe.worker.ending import ending
from probe.worker.parent import Children, Exit, Line, Process

TICK_S = 0.1
"""How often whoever shows progress is called."""


class Heard:
    """All that one child has said so far."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.step = ""
        self.error = ""
        self.moved_at = 0.0
        """When it last said something, by `time.monotonic`; 0 if it never did."""
        self.exit: Exit | None = None
        self.ended_at = 0.0

    def first(self, key: str) -> Record | None:
        return next((record for record in self.records if record.key == key), None)

    def all(self, key: str) -> list[Record]:
        return [record for record in self.records if record.key == key]


class Talk:
    """The children of one bench and what they say."""

    def __init__(self, children: Children) -> None:
        self.children = children
        self.heard: dict[Process, Heard] = {}
        self.on_tick: Callable[[], None] = lambda: None
        self.on_record: Callable[[Process, Record, float], None] = lambda process, record, at: None

    def start(self, program: str, job: dict[str, Any], **options: Any) -> Process:
        return self._known(self.children.start(program, job, **options))

    def start_foreign(self, argv: list[str], **options: Any) -> Process:
        return self._known(self.children.start_foreign(argv, **options))

    def fork(self, zygote: Process, job: dict[str, Any], **options: Any) -> Process:
        return self._known(self.children.fork(zygote, job, **options))

    def _known(self, process: Process) -> Process:
        self.heard[process] = Heard()
        return process

    def poll(self, timeout_s: float) -> None:
        """Hear what there is, waiting at most so long for the first of it."""
        for event in self.children.poll(timeout_s):
            heard = self.heard.get(event.process)
            if heard is None:
                continue
            if isinstance(event, Line):
                self._take(event.process, heard, event.line)
            else:
                heard.exit, heard.ended_at = event.exit, time.monotonic()
        self.on_tick()

    def _take(self, process: Process, heard: Heard, line: bytes) -> None:
        try:
            record = msgspec.json.decode(line, type=Record)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # a library printed on the reply pipe
        heard.moved_at = time.monotonic()
        if record.key == "step":
            heard.step = record.text
        elif record.key == "error":
            heard.error = record.text
        else:
            self.on_record(process, record, time.monotonic())
            heard.records.append(record)

    def until(self, over: Callable[[], bool], until: float) -> bool:
        """Hear until `over` or until the `time.monotonic` value; whether it was the former."""
        while not over():
            left_s = until - time.monotonic()
            if left_s <= 0:
                return False
            self.poll(min(left_s, TICK_S))
        return True

    def ended(self, processes: Iterable[Process], until: float) -> bool:
        """Hear until all of them have ended, for as long as `until`."""
        waited = list(processes)
        return self.until(lambda: all(self.heard[process].exit is not None for process in waited), until)

    def end(self, processes: Iterable[Process], bound_s: float) -> None:
        """Kill those that are still there and hear their ends, for at most `bound_s`."""
        left = [process for process in processes if self.heard[process].exit is None]
        for process in left:
            process.kill()
        self.ended(left, time.monotonic() + bound_s)

    def lived_s(self, process: Process) -> float:
        return (self.heard[process].ended_at or time.monotonic()) - process.started_at

    def was_getting_on(self, process: Process, within_s: float) -> bool:
        """Whether it said something so shortly before its end, or before now."""
        heard = self.heard[process]
        return heard.moved_at > 0 and (heard.ended_at or time.monotonic()) - heard.moved_at < within_s

    def problem(self, process: Process) -> Finding | None:
        """Why it did not end as it should, in the words of `probe check`; None if it did."""
        heard = self.heard[process]
        if heard.exit is not None and heard.exit.status == 0 and not process.killed:
            return None
        return ending(
            process.worker,
            heard.exit or Exit(),
            step=heard.step,
            elapsed_s=self.lived_s(process),
            killed=process.killed,
            flooded=process.flooded,
            error=heard.error,
            tail=bytes(process.tail),
            oom_kills=None,
        )
