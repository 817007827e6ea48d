"""Drives one ugly child as a run of probe does, and prints what came of it as JSON.

In a process of its own, so that what is left behind can be told from outside.

``drive.py <way> <how: spawn|fork> <limit s> <killed after s> [deaf]``
"""

import json
import os
import sys
import time
from pathlib import Path

import msgspec

from probe.model import Record
from probe.worker import parent
from probe.worker.ending import ending
from probe.worker.parent import Children, End, Event, Exit, Line, Process

PROGRAMS = Path(__file__).parent / "programs"


def main() -> None:
    way, how, limit_s, kill_after_s = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    parent.become_subreaper()
    children = Children()
    if (
        "deaf" in sys.argv
    ):  # the kill that does not work: as for a process in state D, the signal is sent and nothing ends
        Process.kill = lambda self: setattr(self, "killed", True)  # type: ignore[method-assign]
        parent._ignoring_absence = lambda call, *arguments: None
    began = time.monotonic()
    zygote = None
    if how == "fork":
        zygote = children.start("zygote", {"programs": {"torch": str(PROGRAMS / "ugly.py")}}, worker="torch")
        _until(children, lambda event: isinstance(event, Line) and b'"import"' in event.line, 30)
        process = children.fork(
            zygote, {"way": way}, worker="torch", target="cpu:0", limit_s=limit_s, environment={"FORKED": "1"}
        )
    else:
        process = children.start(str(PROGRAMS / "ugly"), {"way": way}, worker="nvml", limit_s=limit_s)
    started = time.monotonic()
    events = _until(children, lambda event: isinstance(event, End) and event.process is process, kill_after_s)
    killed_at = time.monotonic()
    events += children.reap(0.5)
    exits = [event.exit for event in events if isinstance(event, End) and event.process is process]
    records = [_record(event.line) for event in events if isinstance(event, Line) and event.process is process]
    finding = ending(
        process.worker,
        exits[0] if exits else Exit(),
        step=next((r.text for r in records if r and r.key == "step"), ""),
        elapsed_s=killed_at - started,
        killed=process.killed,
        flooded=process.flooded,
        error=next((r.text for r in records if r and r.key == "error"), ""),
        tail=bytes(process.tail),
    )
    sys.stdout.write(
        json.dumps(
            {
                "status": finding.status,
                "summary": finding.summary,
                "data": dict(finding.data),
                "answer": next((r.data.get("value") for r in records if r and r.key == "answer"), None),
                "garbage": records.count(None),
                "tail": bytes(process.tail).decode(errors="replace"),
                "ended_s": killed_at - started,
                "reaped_s": time.monotonic() - killed_at,
                "survivors": [survivor.pid for survivor in children.survivors()],
                "pid": process.pid,
                "total_s": time.monotonic() - began,
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)


def _record(line: bytes) -> Record | None:
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _until(children: Children, wanted: "object", bound_s: float) -> list[Event]:
    events: list[Event] = []
    until = time.monotonic() + bound_s
    while time.monotonic() < until:
        for event in children.poll(until - time.monotonic()):
            events.append(event)
            if wanted(event):  # type: ignore[operator]
                return events
    return events


main()
