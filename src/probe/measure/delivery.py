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
from probe.measure.model import SCHEMA, Bench, Comparison, Done, Program, Provenance, Result
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
    comparison: Comparison | None = None
    if request.baseline is not None:
        comparison = baseline.compare(request.baseline, made, request.compare, request.tolerance)
    made = replace(made, comparison=comparison)
    return replace(made, exit_code=exit_code(made, why))


def exit_code(report: Bench, why: str) -> int:
    """In the caller's column: interrupted, else a regression, else a program that could not run."""
    if why in INTERRUPTS.values():
        return exits.code(CURRENT.column, why)
    if report.comparison is not None and report.comparison.regressions:
        return exits.code(CURRENT.column, "unhealthy")
    if why or any(program.status is Done.FAIL for program in report.programs):
        return exits.code(CURRENT.column, "undetermined")
    return exits.code(CURRENT.column, "healthy")


def write_all(request: Request, report: Bench, budget: Budget) -> int:
    """Write what was asked for, and the table; the exit code, another where a file could not be written."""
    from probe.measure import json as bench_json
    from probe.measure import text

    encoded = bench_json.encode(report)
    problems = []
    wanted: list[tuple[str, Callable[[], bytes]]] = [
        (path, lambda: encoded) for path in (request.json, request.save) if path and path != files.STDOUT
    ]
    if request.html:
        wanted.append((request.html, lambda: _page(report)))
    for path, content in wanted:
        try:
            files.replace(path, content())
        except OSError as error:
            problems.append(f"{path} was not written: {error.strerror or error}")
    if request.json == files.STDOUT:
        out = encoded
    else:
        from probe.report.text import use_colour

        out = text.render(report, colour=use_colour(os.isatty(1), os.environ)).encode("utf-8", "replace")
    write(1, out, max(time.monotonic() + 0.05, budget.began_at + budget.write_s))
    for line in (*problems, *request.loaded.warnings):
        write(2, f"probe: {line}\n".encode("utf-8", "replace"), time.monotonic() + LAST_WORDS_S)
    return exits.code(CURRENT.column, "undetermined") if problems else report.exit_code


def _page(report: Bench) -> bytes:
    from probe.measure import page

    return page.render(report).encode("utf-8", "replace")
