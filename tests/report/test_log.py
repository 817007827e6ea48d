"""The log's line: one line of JSON, dated, bounded, with no secret in it."""

import json
from datetime import datetime

from jsonschema import Draft202012Validator

from probe.faults import diagnose
from probe.model import Profile, Report, Verdict
from probe.report import log
from tests.report.samples import outcome


def report(*checks: object) -> Report:
    outcomes = tuple(checks)
    return Report(
        schema="probe.report/1",
        probe_version="1.2.3",
        host="node7",
        profile=Profile.READINESS,
        verdict=Verdict.UNHEALTHY,
        exit_code=1,
        budget_s=9.0,
        elapsed_s=1.25,
        started_at="2026-11-23T18:01:14.052+01:00",
        causes=diagnose(outcomes),  # type: ignore[arg-type]
        checks=outcomes,  # type: ignore[arg-type]
        notes=("a note",),
    )


def test_a_line_says_when_what_and_why() -> None:
    """What passed is counted, what did not is there with its words and numbers."""
    bad = outcome("nvml.ecc", "fail", "3 uncorrectable errors", target="gpu:GPU-1", errors=3)
    said = json.loads(log.line(report(outcome("nvml.reach", "pass"), outcome("torch.import", "skip"), bad)))
    assert Draft202012Validator(log.schema()).is_valid(said)
    assert datetime.fromisoformat(said["at"]).utcoffset() is not None
    assert (said["schema"], said["verdict"], said["exit_code"], said["passed"], said["skipped"]) == (
        "probe.log/1",
        "unhealthy",
        1,
        1,
        1,
    )
    assert said["causes"][0]["remedy"]
    assert said["problems"] == [
        {
            "id": "nvml.ecc",
            "target": "gpu:GPU-1",
            "status": "fail",
            "summary": "3 uncorrectable errors",
            "data": {"errors": 3},
        }
    ]


def test_it_is_one_line_without_secrets() -> None:
    """Whatever a host says: newlines are escaped, tokens and passwords hidden."""
    hostile = outcome(
        "service.http.x", "fail", "a\nb http://u:hunter2@h/?token=s3cret", text="Authorization: Bearer abc"
    )
    line = log.line(report(hostile))
    assert "\n" not in line
    for secret in ("hunter2", "s3cret", "Bearer abc"):
        assert secret not in line


def test_a_thousand_problems_are_cut() -> None:
    """A line stays under 64 KiB, which a pipe holds and one write takes."""
    many = [outcome("nvml.ecc", "fail", "x" * 10_000, target=f"gpu:GPU-{n}") for n in range(1000)]
    assert len(log.line(report(*many))) < 1 << 16
