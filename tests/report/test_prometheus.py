"""The report for the textfile collector, as Prometheus' own client reads it."""

from collections import Counter

import pytest
from hypothesis import given
from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from probe.model import Report, Verdict
from probe.report.prometheus import encode
from tests.report.hostile import reports
from tests.report.machines import HEAT, MEMORY, healthy_h100, no_gpu, sick_8_gpus
from tests.report.samples import GPUS, outcome, report

Labels = frozenset[tuple[str, str]]


def families(made: Report) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(encode(made).decode()))
    assert len(found) == len({each.name for each in found})
    return {each.name.removeprefix("gpuprobe_"): each for each in found}


def values(made: Report, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by the values of its labels."""
    return {tuple(sample.labels.values()): sample.value for sample in families(made)[name].samples}


def test_a_check_has_its_status_as_a_number() -> None:
    statuses = ["skip", "pass", "warn", "fail", "unknown", "timeout"]
    made = report(*(outcome(f"nvml.{status}", status) for status in statuses))
    expected = {(f"nvml.{status}", ""): number for status, number in zip(statuses, range(-1, 5), strict=True)}
    assert expected == values(made, "check_status")


def test_a_check_that_did_not_run_has_no_duration() -> None:
    made = report(outcome("nvml.ecc", "skip"), outcome("nvml.reach", "pass"))
    assert {("nvml.reach", ""): 0.25} == values(made, "check_duration_seconds")


@pytest.mark.parametrize("verdict", Verdict)
def test_the_verdict_is_one_of_all(verdict: Verdict) -> None:
    made = replace(report(), verdict=verdict)
    assert {(each.value,): float(each is verdict) for each in Verdict} == values(made, "verdict")
    assert {(): float(verdict in (Verdict.HEALTHY, Verdict.DEGRADED))} == values(made, "ready")


def test_the_run_is_dated_by_a_value() -> None:
    expected = {(): 1795446000.0}
    assert expected == values(healthy_h100(), "last_run_timestamp_seconds")
    assert expected == values(
        replace(healthy_h100(), started_at="2026-11-23T16:00:00+01:00"), "last_run_timestamp_seconds"
    )
    assert "last_run_timestamp_seconds" not in families(replace(healthy_h100(), started_at="yesterday"))


def test_no_sample_has_a_timestamp() -> None:
    found = families(sick_8_gpus()).values()
    assert {None} == {sample.timestamp for each in found for sample in each.samples}


def test_causes_are_counted_by_code() -> None:
    made = sick_8_gpus()
    again = replace(made, causes=(*made.causes, made.causes[0]))
    assert 2 == values(again, "causes")["CUDA_KERNEL_HANGS", "host_admin"]
    assert 1 == values(again, "causes")["SHM_SMALL", "user"]
    assert "causes" not in families(healthy_h100())


def test_numbers_of_each_gpu_are_there_in_base_units() -> None:
    made = sick_8_gpus()
    for key in HEAT:
        assert set(GPUS) == {target for target, _ in values(made, f"nvml_temperature_{key}")}
    assert {(gpu, gpu.removeprefix("gpu:")): MEMORY["total_bytes"] for gpu in GPUS} == values(
        made, "nvml_memory_total_bytes"
    )
    assert {0.12} == set(values(made, "nvml_pcie_load_ratio").values())


def test_a_machine_without_gpus_has_no_numbers_of_any() -> None:
    assert not [name for name in families(no_gpu()) if "celsius" in name or "bytes" in name]


def test_what_was_not_observed_is_no_number() -> None:
    """GPU 5 answers with all ones: its check is `unknown`, and 25500 % are no measurement."""
    assert (GPUS[5], GPUS[5].removeprefix("gpu:")) not in values(sick_8_gpus(), "nvml_pcie_load_ratio")


def test_two_checks_that_look_alike_are_one_sample() -> None:
    """Two samples with one name and the same labels make the collector drop the scrape."""
    twins = report(outcome("a.b", "fail", target="x"), outcome("a.b", "pass", target="x\x00"))
    assert {("a.b", "x"): 2} == values(twins, "check_status")


@pytest.mark.parametrize("text", ['say "x"', "back\\slash", "\\n", "a{b}", "#", "é|,="])
def test_labels_come_back_as_they_were(text: str) -> None:
    assert {("a.b", text): 0} == values(report(outcome("a.b", "pass", target=text)), "check_status")


@given(reports)
def test_any_report_is_readable(made: Report) -> None:
    found = families(made)
    assert {"build_info", "ready", "verdict"} <= found.keys()
    for each in found.values():
        assert "gauge" == each.type
        assert each.documentation
        again = Counter(frozenset(sample.labels.items()) for sample in each.samples)
        assert not [labels for labels, times in again.items() if times > 1]
        assert not [sample for sample in each.samples if sample.timestamp is not None]
