"""The report for CI, as junitparser reads it and as Jenkins' schema has it."""

import os
from pathlib import Path

import pytest
import xmlschema
from hypothesis import given, settings
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite
from msgspec.structs import replace

from probe.model import Report, Status
from probe.redact import clean, redact
from probe.report.junit import encode
from tests.report.hostile import reports
from tests.report.machines import EVIL, MACHINES, sick_8_gpus
from tests.report.samples import GPUS, outcome, report


def suite(made: Report) -> TestSuite:
    (only,) = JUnitXml.fromroot(JUnitXml.fromstring(encode(made))._elem)
    assert isinstance(only, TestSuite)
    return only


def case(made: Report, name: str) -> TestCase:
    (found,) = [each for each in suite(made) if each.name == name]
    assert isinstance(found, TestCase)
    return found


def test_each_check_of_each_target_is_a_testcase_of_its_rung() -> None:
    made = sick_8_gpus()
    expected = [
        (f"probe.{o.id.partition('.')[0]}", f"{o.id}[{o.target}]" if o.target else o.id, 0.25) for o in made.checks
    ]
    assert expected == [(each.classname, each.name, each.time) for each in suite(made)]


def test_a_failure_says_the_cause_the_remedy_and_who() -> None:
    (failure,) = case(sick_8_gpus(), f"nvml.ecc[{GPUS[5]}]").result
    assert isinstance(failure, Failure)
    assert ("ECC_ERRORS", "fail: 7 uncorrected errors, at most 0") == (failure.type, failure.message)
    assert [
        "7 uncorrected errors, at most 0",
        "cause: ECC_ERRORS: GPU 5: 7 errors",
        "remedy: Reset this GPU, or reboot. Look for its XIDs in the kernel log. [hardware]",
        "more: probe explain ECC_ERRORS",
    ] == (failure.text or "").splitlines()


@pytest.mark.parametrize(
    ("status", "expected"), [("fail", Failure), ("unknown", Error), ("timeout", Error), ("skip", Skipped)]
)
def test_wrong_is_a_failure_and_not_knowing_an_error(status: str, expected: type) -> None:
    (result,) = case(report(outcome("nvml.ecc", status, "said so")), "nvml.ecc").result
    assert type(result) is expected
    assert "said so" in result.message


def test_a_warning_passes_and_says_so() -> None:
    warned = case(sick_8_gpus(), "device.shm")
    assert warned.is_passed
    assert "warn: /dev/shm is 64 MiB, at least 1 GiB wanted" == (warned.system_out or "").splitlines()[0]


def test_an_advisory_failure_is_marked_as_one() -> None:
    (result,) = case(report(outcome("nvml.mode", severity="advisory")), "nvml.mode").result
    assert "(advisory) fail: it is bad" == result.message


def test_the_suite_counts_and_says_the_verdict() -> None:
    made = suite(sick_8_gpus())
    assert (162, 2, 2, 1) == (made.tests, made.failures, made.errors, made.skipped)
    assert ("node-7", 4.1, "2026-11-23T15:00:00Z") == (made.hostname, made.time, made.timestamp)
    assert {"verdict": "unhealthy", "profile": "readiness", "exit_code": "1", "probe_version": "0.1.0"} == {
        each.get("name"): each.get("value") for each in made._elem.iter("property")
    }
    assert (made._elem.findtext("system-out") or "").startswith("unhealthy: GPU 3: no answer.")


def test_what_a_host_says_comes_back_as_it_was_but_for_what_xml_cannot_say() -> None:
    (result,) = case(sick_8_gpus(), "service.http.web").result
    assert redact(clean(EVIL)).replace("\ufffe", "") == (result.text or "").splitlines()[0]


def test_a_time_that_is_no_number_is_0() -> None:
    made = replace(report(replace(outcome("a.b", "pass"), elapsed_s=float("nan"))), elapsed_s=float("inf"))
    assert (0.0, 0.0) == (suite(made).time, case(made, "a.b").time)


@given(reports)
def test_any_report_comes_back_with_its_cases(made: Report) -> None:
    results = [[type(result) for result in each.result] for each in suite(made)]
    expected = {Status.FAIL: [Failure], Status.UNKNOWN: [Error], Status.TIMEOUT: [Error], Status.SKIP: [Skipped]}
    assert [expected.get(seen.status, []) for seen in made.checks] == results


# ----------------------------------------------------------------------------------------------------- Jenkins' schema


@pytest.fixture(scope="module")
def jenkins() -> xmlschema.XMLSchema:
    """``junit-10.xsd``, of no installable package: pytest's source distribution has it in testing/example_scripts."""
    return xmlschema.XMLSchema(Path(os.environ["JUNIT_XSD"]))


@pytest.mark.system
@pytest.mark.parametrize("machine", MACHINES)
def test_reports_are_valid_for_jenkins(jenkins: xmlschema.XMLSchema, machine: str) -> None:
    jenkins.validate(encode(MACHINES[machine]()))


@pytest.mark.system
@given(made=reports)
@settings(max_examples=20)
def test_any_report_is_valid_for_jenkins(jenkins: xmlschema.XMLSchema, made: Report) -> None:
    jenkins.validate(encode(made))
