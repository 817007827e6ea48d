"""The report for programs, and its published schema."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from probe.model import Outcome, Report, Rung, Severity, Status
from probe.report import json as report_json
from probe.report import log
from tests.report.samples import GPUS, healthy, outcome, report
from tests.report.test_text import all_failing, any_outcomes

FIELDS = [
    "schema",
    "probe_version",
    "host",
    "profile",
    "verdict",
    "exit_code",
    "budget_s",
    "elapsed_s",
    "started_at",
    "causes",
    "checks",
    "notes",
]


def decoded(made: Report) -> dict[str, Any]:
    line = report_json.encode(made)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value: dict[str, Any] = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return value


def test_a_report_has_the_fields_of_the_design_in_their_order() -> None:
    made = decoded(report(outcome("nvml.reach", summary="NVML 18", nvml_code=18, driver="580.159"), notes=("n",)))
    assert FIELDS == list(made)
    assert {
        "id": "nvml.reach",
        "target": "",
        "status": "fail",
        "severity": "critical",
        "summary": "NVML 18",
        "started_s": 0.5,
        "elapsed_s": 0.25,
        "data": {"nvml_code": 18, "driver": "580.159"},
    } == made["checks"][0]
    assert {"code", "summary", "remedy", "who", "checks"} == set(made["causes"][0])
    assert [{"id": "nvml.reach", "target": ""}] == made["causes"][0]["checks"]


def test_rungs_are_there_only_where_there_are_any() -> None:
    with_rungs = Outcome("a.b", "", Status.PASS, Severity.CRITICAL, "", 0, 0, {}, (Rung("cuInit", Status.PASS, 0.2),))
    first, second = decoded(report(with_rungs, outcome("a.c", "pass")))["checks"]
    assert [{"rung": "cuInit", "status": "pass", "elapsed_s": 0.2}] == first["rungs"]
    assert "rungs" not in second


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "Infinity"),
        (float("-inf"), "-Infinity"),
        (2**70, str(2**70)),
        ("\udcff", "?"),
        (None, None),
        (True, True),
        (1.5, 1.5),
    ],
)
def test_what_json_cannot_say_is_a_string(value: Any, expected: Any) -> None:
    assert {"x": expected} == decoded(report(outcome("a.b", "warn", x=value)))["checks"][0]["data"]


def test_gpus_keep_their_whole_names() -> None:
    assert GPUS[0] == decoded(report(outcome("cuda.kernel", target=GPUS[0])))["causes"][0]["checks"][0]["target"]


def test_secrets_are_hidden_everywhere() -> None:
    evil = "GET http://u:s3cr3t@h?token=s3cr3t"
    made = report(outcome("service.http.x", summary=evil, url=evil, api_token="s3cr3t"), notes=(evil,))
    assert b"s3cr3t" not in report_json.encode(made)
    assert b"s3cr3t" not in report_json.error("bad HF_TOKEN=s3cr3t", "PROBE_X=http://u:s3cr3t@h", ("token=s3cr3t",))


# ------------------------------------------------------------------------------------------------------- the schemas

SCHEMAS = [
    (report_json.REPORT, report_json.schema),
    (report_json.ERROR, report_json.error_schema),
    (log.LOG, log.schema),
]


@pytest.mark.parametrize(("name", "make"), SCHEMAS, ids=[name for name, _ in SCHEMAS])
def test_the_published_schema_is_made_from_the_types_of_today(name: str, make: Any) -> None:
    """If not: ``python -m probe.report.json``, and mind that the format is versioned."""
    assert json.loads(Path(report_json.file_of(name)).read_bytes()) == make()


@pytest.mark.parametrize(("name", "make"), SCHEMAS, ids=[name for name, _ in SCHEMAS])
def test_the_schema_is_one(name: str, make: Any) -> None:
    Draft202012Validator.check_schema(make())


def valid(value: Any) -> bool:
    return bool(Draft202012Validator(report_json.schema()).is_valid(value))


@pytest.mark.parametrize(
    "outcomes", [[], healthy(), all_failing("bad"), [outcome("a.b", "warn", x=float("nan"))]], ids=range(4)
)
def test_real_reports_are_valid(outcomes: list[Outcome]) -> None:
    assert valid(decoded(report(*outcomes, notes=("torch not installed",))))


@given(any_outcomes)
def test_any_report_is_valid(outcomes: list[Outcome]) -> None:
    assert valid(decoded(report(*outcomes)))


@pytest.mark.parametrize("field", FIELDS)
def test_a_report_without_one_of_its_fields_is_not_valid(field: str) -> None:
    made = decoded(report(*healthy()))
    del made[field]
    assert not valid(made)


@pytest.mark.parametrize(
    ("field", "value"), [("schema", "probe.report/2"), ("verdict", "fine"), ("exit_code", "0"), ("checks", [{}])]
)
def test_a_report_with_a_wrong_field_is_not_valid(field: str, value: Any) -> None:
    assert not valid(decoded(report(*healthy())) | {field: value})


def test_an_error_says_what_is_wrong_where_and_what_could_stand_there() -> None:
    made = json.loads(report_json.error("no such profile: redy", "--profile", ("readiness", "liveness")))
    assert {
        "schema": "probe.error/1",
        "message": "no such profile: redy",
        "where": "--profile",
        "allowed": ["readiness", "liveness"],
    } == made
    assert Draft202012Validator(report_json.error_schema()).is_valid(made)


def test_the_schemas_are_published_by_running_the_module(tmp_path: Path) -> None:
    program = "import sys; from probe.report import json; json.SCHEMAS = sys.argv[1]; json.write_schemas()"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=20)
    assert ["probe.error-1.json", "probe.gate-1.json", "probe.log-1.json", "probe.report-1.json"] == sorted(
        path.name for path in tmp_path.iterdir()
    )
