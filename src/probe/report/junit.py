"""The report for CI: `Report` -> JUnit XML, one testcase for each check and target.

Jenkins' ``junit-10.xsd`` (https://github.com/jenkinsci/xunit-plugin), used as pytest uses it::

    fail              <failure>      observed, and wrong
    unknown, timeout  <error>        the check could not tell
    skip              <skipped>      with the reason
    warn              passes         and says so in <system-out>

The remedy is in the text of a failure: GitLab shows a testcase's name and that text, and hardly more.
"""

import re
from collections.abc import Iterable, Mapping
from html import escape

from probe.model import Cause, Outcome, Report, Severity, Status
from probe.redact import clean, redact
from probe.report.measures import finite
from probe.report.text import headline, speaker

NOT_XML = re.compile(r"[\ufffe\uffff]")
"""What XML 1.0 has no way to say, beside the control characters that no report shows."""

ELEMENTS = {
    Status.FAIL: "failure",
    Status.UNKNOWN: "error",
    Status.TIMEOUT: "error",
    Status.SKIP: "skipped",
}


def encode(report: Report) -> bytes:
    """One test suite, in UTF-8."""
    counts = {
        "tests": str(len(report.checks)),
        "failures": _count(report, "failure"),
        "errors": _count(report, "error"),
    }
    suite = {
        **counts,
        "skipped": _count(report, "skipped"),
        "time": _seconds(report.elapsed_s),
        "timestamp": report.started_at,
        "hostname": report.host,
    }
    causes = _causes(report)
    parts = [
        _properties(report),
        *(_case(outcome, causes.get((outcome.id, outcome.target))) for outcome in report.checks),
        _said(report),
    ]
    whole = _element("testsuite", {"name": "probe", **suite}, "\n" + "\n".join(parts) + "\n")
    outer = _element("testsuites", {"name": "probe", **counts, "time": suite["time"]}, f"\n{whole}\n")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{outer}\n'.encode()


def _count(report: Report, element: str) -> str:
    return str(sum(ELEMENTS.get(outcome.status) == element for outcome in report.checks))


def _causes(report: Report) -> Mapping[tuple[str, str], Cause]:
    return {(named.id, named.target): cause for cause in reversed(report.causes) for named in cause.checks}


def _properties(report: Report) -> str:
    told = {
        "verdict": report.verdict.value,
        "profile": report.profile.value,
        "exit_code": str(report.exit_code),
        "probe_version": report.probe_version,
    }
    return _element("properties", {}, "".join(_element("property", {"name": k, "value": v}) for k, v in told.items()))


def _said(report: Report) -> str:
    first = headline(report, speaker(outcome.target for outcome in report.checks))
    return _element("system-out", {}, _lines([first, *(f"note: {note}" for note in report.notes)]))


def _case(outcome: Outcome, cause: Cause | None) -> str:
    attributes = {
        "classname": f"probe.{outcome.id.partition('.')[0]}",
        "name": f"{outcome.id}[{outcome.target}]" if outcome.target else outcome.id,
        "time": _seconds(outcome.elapsed_s),
    }
    return _element("testcase", attributes, _result(outcome, cause))


def _result(outcome: Outcome, cause: Cause | None) -> str:
    advisory = "(advisory) " * (outcome.severity is Severity.ADVISORY)
    if outcome.status is Status.PASS:
        return ""
    if outcome.status is Status.SKIP:
        return _element("skipped", {"type": "skip", "message": outcome.summary})
    if outcome.status is Status.WARN:
        return _element("system-out", {}, _lines([f"warn: {outcome.summary}", *_remedy(cause)]))
    attributes = {
        "type": cause.code if cause else outcome.status.value,
        "message": f"{advisory}{outcome.status.value}: {outcome.summary}",
    }
    return _element(ELEMENTS[outcome.status], attributes, _lines([outcome.summary, *_remedy(cause)]))


def _remedy(cause: Cause | None) -> Iterable[str]:
    if cause is None:
        return []
    return [
        f"cause: {cause.code}: {cause.summary}",
        f"remedy: {cause.remedy} [{cause.who.value}]",
        f"more: probe explain {cause.code}",
    ]


def _seconds(seconds: float) -> str:
    return f"{max(0.0, finite(seconds) or 0.0):.3f}"


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(map(_words, texts))


def _words(text: str) -> str:
    """What is left out can join the parts of a secret, or swallow the word by which it is known: so twice."""
    return escape(redact(clean(NOT_XML.sub("", redact(text)))))


def _element(name: str, attributes: Mapping[str, str], body: str = "") -> str:
    """`body` is XML already."""
    given = "".join(f' {key}="{_words(value)}"' for key, value in attributes.items())
    return f"<{name}{given}>{body}</{name}>" if body else f"<{name}{given}/>"
