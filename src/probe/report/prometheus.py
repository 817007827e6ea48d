"""The report for node_exporter's textfile collector: `Report` -> Prometheus' text format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats, names by https://prometheus.io/docs/practices/naming. No
sample has a timestamp, which the collector rejects, and no two samples have the same name and labels, for which it
would drop the whole scrape. To be written beside ``probe.prom`` and renamed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from probe.model import Report, Status, Verdict
from probe.redact import clean, redact
from probe.report.measures import finite, measures

STATUSES = {
    Status.SKIP: -1,
    Status.PASS: 0,
    Status.WARN: 1,
    Status.FAIL: 2,
    Status.UNKNOWN: 3,
    Status.TIMEOUT: 4,
}
"""In order, so that ``> 1`` is what was bad or could not be told, and a check that did not run is not 0."""

UNITS = {"celsius": ("celsius", 1), "bytes": ("bytes", 1), "s": ("seconds", 1), "percent": ("ratio", 100)}
"""Prometheus' base unit for each of ours, and how many of ours are one of it."""

Labels = Mapping[str, str]
Samples = Iterable[tuple[Labels, float | None]]


def encode(report: Report) -> bytes:
    """Gauges only: each file replaces the last, and a run knows no other."""
    families = (*_of_the_run(report), *_of_the_checks(report), *_of_the_gpus(report))
    return "".join(_family(f"gpuprobe_{name}", about, samples) for name, about, samples in families).encode()


def _of_the_run(report: Report) -> Iterator[tuple[str, str, Samples]]:
    ready = report.verdict in (Verdict.HEALTHY, Verdict.DEGRADED)
    verdicts = [({"verdict": each.value}, each is report.verdict) for each in Verdict]
    counts: dict[tuple[str, str], int] = {}
    for cause in report.causes:
        counts[cause.code, cause.who.value] = counts.get((cause.code, cause.who.value), 0) + 1
    causes = [({"code": code, "who": who}, count) for (code, who), count in counts.items()]
    yield "build_info", "The version of probe.", [({"version": report.probe_version}, 1)]
    yield "last_run_timestamp_seconds", "When the last run began, in Unix time.", [({}, _unix(report.started_at))]
    yield "ready", "1 if the last verdict was healthy or degraded.", [({}, ready)]
    yield "verdict", "1 for the verdict of the last run, 0 for the others.", verdicts
    yield "causes", "What is wrong: how many causes of each code, and who can mend them.", causes


def _of_the_checks(report: Report) -> Iterator[tuple[str, str, Samples]]:
    names = [{"check": outcome.id, "target": outcome.target} for outcome in report.checks]
    statuses = [STATUSES[outcome.status] for outcome in report.checks]
    seconds = [None if o.status is Status.SKIP else finite(o.elapsed_s) for o in report.checks]
    meaning = ", ".join(f"{number} {status.value}" for status, number in STATUSES.items())
    yield "check_status", f"How a check ended: {meaning}.", zip(names, statuses, strict=True)
    yield "check_duration_seconds", "How long a check took.", zip(names, seconds, strict=True)


def _of_the_gpus(report: Report) -> Iterator[tuple[str, str, Samples]]:
    """``gpuprobe_nvml_temperature_gpu_celsius``: the check, the key of its data, the base unit."""
    found: dict[str, tuple[str, str, list[tuple[Labels, float | None]]]] = {}
    for measure in measures(report):
        unit, divisor = UNITS[measure.unit]
        name = f"{re.sub(r'[^a-zA-Z0-9]', '_', _shown(measure.check))}_{measure.name}_{unit}"
        labels = {"target": measure.target, "uuid": measure.target.partition(":")[2]}
        about = f"What {measure.check} found: {measure.name}, in {unit}."
        found.setdefault(name, (name, about, []))[2].append((labels, measure.value / divisor))
    yield from found.values()


def _unix(moment: str) -> float | None:
    try:
        made = datetime.fromisoformat(moment)
    except ValueError:
        return None
    return (made if made.tzinfo else made.replace(tzinfo=UTC)).timestamp()


def _family(name: str, about: str, samples: Samples) -> str:
    """One metric; nothing where it has no sample. Of samples that differ in nothing that is shown, the highest."""
    kept: dict[str, float] = {}
    for labels, value in samples:
        if value is not None:
            shown = _labels(labels)
            kept[shown] = max(value, kept.get(shown, value))
    lines = [f"{name}{labels} {_number(value)}\n" for labels, value in kept.items()]
    return "".join([f"# HELP {name} {_escaped(about)}\n# TYPE {name} gauge\n", *lines]) if lines else ""


def _labels(labels: Labels) -> str:
    pairs = ",".join(f'{key}="{_value(value)}"' for key, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _value(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _escaped(text: str) -> str:
    """No newline is left that would have to be escaped."""
    return _shown(text).replace("\\", "\\\\")


def _shown(text: str) -> str:
    return redact(clean(redact(text)))  # a swallowed escape sequence can hold the word by which a secret is known


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
