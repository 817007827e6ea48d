"""The report for Nagios and Icinga: `Report` -> a plugin's output with perfdata.

The Monitoring Plugins' guidelines (https://www.monitoring-plugins.org/doc/guidelines.html) and Nagios' plugin API::

    PROBE CRITICAL - unhealthy: <cause>. <remedy> [who] | elapsed=4.100s;;;0;9 pass=12;;;0 ... 'GPU-0f32 gpu_celsius'=41
    <the rest of the text report>

The word follows `probe.exits`, so that it agrees with the exit code of a run with ``--exit-codes nagios``.
"""

import re
from collections.abc import Iterable, Iterator

from probe import exits
from probe.model import Profile, Report, Status
from probe.report.measures import finite, measures
from probe.report.text import Say, headline, render, speaker

WORDS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
LIMIT_BYTES = 4096  # what Nagios reads of a plugin's output, by its plugin API
LIMIT_PERFDATA_BYTES = 2048
MORE = "... more lines; --format json has all"
GRAPHED = ("gpu", "memory")
"""Whose temperatures: the device's thresholds are in degrees too, and would be lines that never move."""


def encode(report: Report) -> bytes:
    """At most 4096 bytes, ended by a newline."""
    say = speaker(outcome.target for outcome in report.checks)
    first = f"PROBE {_word(report)} - {_plain(headline(report, say))} | {_perfdata(report, say)}"
    rest = [_plain(line) for line in render(report).splitlines()[1:]]
    return "".join(line + "\n" for line in _fitted([first, *rest])).encode()


def _word(report: Report) -> str:
    # In liveness a run that could not tell leaves with 0, but not one that was interrupted: only its code tells them.
    liveness = report.profile is Profile.LIVENESS and report.exit_code == 0
    return WORDS[exits.code("nagios", report.verdict.value, liveness=liveness)]


def _plain(text: str) -> str:
    """`text` without the sign behind which perfdata begins."""
    return text.replace("|", "/")


def _fitted(lines: list[str]) -> Iterator[str]:
    """`lines` from the first as long as they fit, and where they do not, that there are more."""
    left = LIMIT_BYTES
    needed = sum(map(_size, lines))
    for line in lines:
        if needed > left and _size(line) + _size(MORE) > left:
            yield MORE
            return
        yield line
        left -= _size(line)
        needed -= _size(line)


def _size(line: str) -> int:
    return len(line.encode()) + 1


def _perfdata(report: Report, say: Say) -> str:
    """As many as fit; of two that have one label the first, since a label is the name of a graph."""
    found: dict[str, str] = {}
    left = LIMIT_PERFDATA_BYTES
    for label, value in _values(report, say):
        left -= _size(f"{label}={value}")
        if left < 0:
            break
        found.setdefault(label, value)
    return " ".join(f"{label}={value}" for label, value in found.items())


def _values(report: Report, say: Say) -> Iterable[tuple[str, str]]:
    """Labels with ``value[unit];[warn];[crit];[min];[max]``; the budget is the most that a run can take."""
    if (elapsed := finite(report.elapsed_s)) is not None:
        yield "elapsed", f"{elapsed:.3f}s;;;0;{_number(finite(report.budget_s))}"
    for status in Status:
        yield status.value, f"{sum(outcome.status is status for outcome in report.checks)};;;0"
    for measure in measures(report):
        if measure.unit == "celsius" and measure.name in GRAPHED:
            yield _label(f"{say(measure.target)} {measure.name}_celsius"), _number(measure.value)


def _label(text: str) -> str:
    """In quotes; two quotes for one, as the guidelines have it, are beyond many readers, so there are none inside."""
    return "'" + re.sub(r"['=|]", "", text).removeprefix("gpu:") + "'"


def _number(value: float | None) -> str:
    """Digits without an exponent, which the guidelines do not know."""
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
