"""What is known when a bench ends -> its report -> files by rename, the table, the exit code."""

import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from probe import __version__, exits
from probe.attempt import CURRENT, INTERRUPTS, LAST_WORDS_S
from probe.clock import Budget
from probe.measure import baseline, files, limits
from probe.measure.ending import Ending, defect
from probe.measure.model import SCHEMA, Bench, Done, Program, Provenance, Result
from probe.measure.request import Request
from probe.output import write


class Known(Struct, frozen=True):
    """What a run has found out."""

    provenance: Provenance
    programs: tuple[Program, ...]
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
    broken_off: bool = False
    """A program ended in the middle, so that results are missing which the run was to have."""


def report(request: Request, known: Known, budget: Budget, why: str) -> Bench:
    """With limits, comparison and exit code. `why`: empty at the regular end, else what ended the run."""
    elapsed_s = budget.elapsed_s()
    began = datetime.now(UTC).astimezone() - timedelta(seconds=elapsed_s)
    made = Bench(
        schema=SCHEMA,
        probe_version=__version__,
        host=socket.gethostname(),
        started_at=began.isoformat(timespec="milliseconds"),
        time_s=request.time_s,
        elapsed_s=round(elapsed_s, 3),
        exit_code=0,
        partial=bool(why) or known.broken_off,
        notes=((f"{why} after {elapsed_s:.1f} s",) if why else ()) + known.notes,
        provenance=known.provenance,
        programs=known.programs,
        results=limits.with_limits(known.results, known.provenance),
    )
    if request.baseline is not None:
        made = compared(made, request.baseline, request)
    return replace(made, exit_code=exit_code(made, why, compared=request.baseline is not None))


def compared(made: Bench, before: Bench, request: Request) -> Bench:
    """With the comparison; without it where another's file has figures that cannot be reckoned with."""
    try:
        comparison = baseline.compare(before, made, request.compare, request.tolerance)
    except (ArithmeticError, ValueError) as error:
        return replace(made, notes=(*made.notes, f"nothing could be compared: {defect(error)}"))
    return replace(made, comparison=comparison)


def exit_code(report: Bench, why: str, *, compared: bool) -> int:
    """In the caller's column: interrupted, else the worst of all there is to say. `compared`: it was asked for."""
    if why in INTERRUPTS.values():
        return exits.code(CURRENT.column, why)
    ends = ["healthy"]
    if report.comparison is not None and report.comparison.regressions:
        ends.append("unhealthy")
    in_vain = compared and not (report.comparison and report.comparison.judged)
    if why or in_vain or any(program.status is Done.FAIL for program in report.programs):
        ends.append("undetermined")
    return max(exits.code(CURRENT.column, end) for end in ends)


def write_all(request: Request, report: Bench, budget: Budget, ending: Ending) -> int:
    """Write what was asked for, and the table; the exit code, another where a file could not be written."""
    from probe.measure import json as bench_json
    from probe.measure import text

    encoded = bench_json.encode(report)
    problems = []
    save, kept = to_save(request.save, report)
    wanted: list[tuple[str, Callable[[], bytes]]] = [
        (path, lambda: encoded) for path in (request.json, save) if path and path != files.STDOUT
    ]
    if request.html:
        wanted.append((request.html, lambda: _page(report)))
    until = budget.began_at + budget.write_s
    for path, content in wanted:
        ending.doing = path
        try:
            files.replace(path, content(), until)
        except OSError as error:
            problems.append(f"{path} was not written: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - a page that cannot be drawn takes nothing else along
            problems.append(f"{path} was not written: {defect(error)}")
    ending.doing = "stdout"
    if request.json == files.STDOUT:
        out = encoded
    else:
        from probe.report.text import use_colour

        out = text.render(report, colour=use_colour(os.isatty(1), os.environ)).encode("utf-8", "replace")
    if not write(1, out, max(time.monotonic() + LAST_WORDS_S, until)):
        problems.append("the result could not be written to stdout")
    for line in (*problems, *kept, *request.loaded.warnings):
        write(2, f"probe: {line}\n".encode("utf-8", "replace"), time.monotonic() + LAST_WORDS_S)
    return exits.unwritten(CURRENT.column, report.exit_code) if problems else report.exit_code


def to_save(path: str, report: Bench) -> tuple[str, list[str]]:
    """Where the baseline goes, and what to say: one that `--compare` would refuse takes no other's place."""
    why = baseline.unfit(report)
    if not path or not why:
        return path, []
    if os.path.isfile(path) and os.path.getsize(path):
        return "", [f"{path} was left as it was: this run is no baseline: {why}"]
    return path, [f"{path} is no baseline, --compare will refuse it: {why}"]


def _page(report: Bench) -> bytes:
    from probe.measure import page

    return page.render(report).encode("utf-8", "replace")
