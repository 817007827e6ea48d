"""The table, and the result for programs with its schema."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec.structs import replace

from probe.measure import baseline, text
from probe.measure import json as bench_json
from probe.measure.model import SCHEMA, Bench, Done
from probe.report import json as report_json
from tests.measure import samples

FIELDS = {"program", "case", "unit", "median", "p5", "p95", "n", "limit", "limit_source", "verified"}


def compared() -> Bench:
    now = samples.run(2, seed=2, slower={"matmul bf16 8192": 1.09})
    return replace(now, comparison=baseline.compare(samples.run(2, seed=1), now, "/a/base.json", 0.05))


def decoded(report: Bench) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(bench_json.encode(report), parse_constant=pytest.fail)
    return made


def test_the_published_schema_is_made_from_the_types_of_today() -> None:
    """If not: ``python -m probe.measure.json``, and mind that the format is versioned."""
    assert json.loads(Path(report_json.file_of(SCHEMA)).read_bytes()) == bench_json.schema()


@pytest.mark.parametrize("report", [samples.run(0), samples.run(1), compared()], ids=["cpu", "one GPU", "compared"])
def test_results_are_valid(report: Bench) -> None:
    Draft202012Validator.check_schema(bench_json.schema())
    Draft202012Validator(bench_json.schema()).validate(decoded(report))


def test_a_result_has_the_fields_of_the_design() -> None:
    made = decoded(compared())
    assert {"schema", "partial", "provenance", "results", "comparison"} <= made.keys()
    assert FIELDS <= made["results"][0].keys()
    assert "comparison" not in decoded(samples.run(1))


def test_a_result_without_one_of_its_fields_is_not_valid() -> None:
    made = decoded(samples.run(1))
    del made["results"][0]["verified"]
    assert not Draft202012Validator(bench_json.schema()).is_valid(made)


def test_the_first_line_says_what_was_measured() -> None:
    first = text.render(samples.run(8)).partition("\n")[0]
    assert first == "probe bench: 8 x NVIDIA H100 80GB HBM3, driver 580.159.04, torch 2.11.0+cu130; 78.4 s"


def test_a_figure_stands_beside_its_limit() -> None:
    row = next(line for line in text.render(samples.run(1)).splitlines() if line.startswith("  bf16 8192"))
    assert row.split()[2:] == [*row.split()[2:6], "1071", "74%"]


def test_hardware_without_a_limit_says_why_once_for_each_program() -> None:
    lines = text.render(samples.run(0)).splitlines()
    shown = [line for line in lines if "unknown: no table of CPUs" in line]
    assert len(shown) == len({one.program for one in samples.run(0).results} - {"startup", "checks"})


def test_each_collective_stands_above_its_own_limit() -> None:
    """Switches may add for an all-reduce, so that its limit is another than that of a broadcast."""
    lines = text.render(samples.run(8)).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("collective"))
    row = next(line for line in lines[at:] if line.startswith("  limit")).split()
    assert row[1:] == ["787.5", "450.0", "450.0", "450.0", "450.0"]


def test_words_of_others_bring_no_escape_sequences_to_a_coloured_terminal() -> None:
    report = replace(samples.run(0), notes=("h2 said \x1b[2J\x1b[8m\x1b]0;title\x07this",))
    shown = text.render(report, colour=True)
    assert "h2 said this" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[8m" not in shown  # not even a colour: ours come after
    assert "\x1b[1m" in shown


def test_gpus_share_a_line_that_shows_the_slowest() -> None:
    report = samples.run(2)
    target = report.provenance.gpus[1].target
    slow = tuple(
        replace(one, median=one.median / 2) if (one.target, one.case) == (target, "bf16 8192") else one
        for one in report.results
    )
    rows = [line for line in text.render(replace(report, results=slow)).splitlines() if line.startswith("  bf16 8192")]
    assert len(rows) == 1
    assert "slowest of 2" in rows[0]
    assert "37%" in rows[0]


def test_a_regression_is_said_with_case_and_amount_once_for_all_gpus() -> None:
    lines = [line for line in text.render(compared()).splitlines() if "regression: " in line]
    assert len(lines) == 1
    assert "matmul bf16 8192" in lines[0]
    assert lines[0].endswith("and 1 more GPUs")


def test_what_could_not_run_and_what_was_wrong_stand_before_the_figures() -> None:
    report = samples.run(1)
    programs = tuple(
        replace(one, status=Done.FAIL, reason="the CUDA driver crashed with SIGSEGV") if one.program == "host" else one
        for one in report.programs
    )
    wrong = tuple(replace(one, verified=False) if one.case == "bf16 8192" else one for one in report.results)
    shown = text.render(replace(report, programs=programs, results=wrong))
    assert "fail: host: the CUDA driver crashed with SIGSEGV" in shown.partition("startup")[0]
    assert "WRONG RESULT" in next(line for line in shown.splitlines() if line.startswith("  bf16 8192"))


def test_of_several_gpus_those_that_were_wrong_are_named() -> None:
    report = samples.run(4)
    bad = {report.provenance.gpus[1].target, report.provenance.gpus[3].target}
    results = tuple(
        replace(one, verified=False) if (one.case == "bf16 8192" and one.target in bad) or one.case == "2 to 0" else one
        for one in report.results
    )
    lines = text.render(replace(report, results=results)).splitlines()
    assert next(line for line in lines if line.startswith("  bf16 8192")).endswith("WRONG RESULT on GPU 1, 3")
    assert "  WRONG RESULT: 2 to 0" in lines


def test_what_held_the_clocks_back_is_said() -> None:
    assert "clocks were held back by power cap: " in text.render(samples.run(1))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1070.6, "TFLOP/s", "1071"),
        (784.1, "TFLOP/s", "784.1"),
        (55.23, "GB/s", "55.23"),
        (0.0312, "s", "31.20"),
        (3.4, "s", "3400"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value: float, unit: str, expected: str) -> None:
    assert text.figure(value, unit) == expected
