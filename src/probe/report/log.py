"""The log: `Report` -> one line of JSON, dated with its offset from UTC, of what a person looks for afterwards.

Whatever passed is counted only: at a run a minute, a line with every check would fill a disk with good news.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from probe.model import PROBLEMS, Cause, Report, Scalar, Status
from probe.report.json import fit, schema_of

LOG = "probe.log/1"
MOST_PROBLEMS = 40
MOST_WORDS = 300
MOST_CHECKS = 16


class Problem(msgspec.Struct, frozen=True):
    """One check that did not pass."""

    id: str
    target: str
    status: Status
    summary: str
    data: Mapping[str, Scalar]


class Entry(msgspec.Struct, frozen=True):
    """One run."""

    schema: str
    at: str
    """When the run began, RFC 3339."""
    host: str
    probe_version: str
    profile: str
    verdict: str
    exit_code: int
    elapsed_s: float
    passed: int
    skipped: int
    causes: tuple[Cause, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def _short(cause: Cause) -> Cause:
    return replace(cause, summary=cause.summary[:MOST_WORDS], checks=cause.checks[:MOST_CHECKS])


def line(report: Report) -> str:
    """One line, without its newline; a run with nothing wrong takes about 300 bytes."""
    bad = [outcome for outcome in report.checks if outcome.status in PROBLEMS]
    entry = Entry(
        schema=LOG,
        at=report.started_at,
        host=report.host,
        probe_version=report.probe_version,
        profile=report.profile.value,
        verdict=report.verdict.value,
        exit_code=report.exit_code,
        elapsed_s=report.elapsed_s,
        passed=sum(outcome.status is Status.PASS for outcome in report.checks),
        skipped=sum(outcome.status is Status.SKIP for outcome in report.checks),
        causes=tuple(_short(cause) for cause in report.causes[:MOST_PROBLEMS]),
        problems=tuple(
            Problem(found.id, found.target, found.status, found.summary[:MOST_WORDS], found.data)
            for found in bad[:MOST_PROBLEMS]
        ),
        notes=report.notes,
    )
    return msgspec.json.encode(fit(msgspec.to_builtins(entry))).decode()


def schema() -> dict[str, Any]:
    """The JSON Schema of `line`'s output."""
    return schema_of(Entry, LOG, "A line of probe's log.")
