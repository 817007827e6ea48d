"""What is a regression: by the statistic itself, and over a thousand synthetic runs."""

import json
import math
from collections import Counter
from itertools import pairwise, permutations
from pathlib import Path

import pytest
from msgspec.structs import replace

from probe.config import UsageError
from probe.measure import baseline, filing
from probe.measure import json as bench_json
from probe.measure.model import Bench, Change, Comparison, Done, Program, Result
from tests.measure import samples

TOLERANCE = 0.05
REPORTS = 1000


def compared(before: Bench, after: Bench, tolerance: float = TOLERANCE) -> Comparison:
    return baseline.compare(before, after, "/some/where/base.json", tolerance)


def verdicts(found: Comparison) -> dict[str, str]:
    return {f"{change.program} {change.case}": change.verdict for change in found.changes}


# ---- the statistic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "freedom", "expected"),
    [
        (0.01, 1, 31.8205),
        (0.01, 2, 6.9646),
        (0.01, 3, 4.5407),
        (0.01, 10, 2.7638),
        (1e-4, 18, 4.6480),
        (1e-4, 4, 13.0337),
        (0.01, 2.5, 5.3531),
        (3.6e-4, 2.5, 20.8586),
    ],
)
def test_the_quantiles_of_student_are_those_of_the_tables(tail: float, freedom: float, expected: float) -> None:
    """Between whole degrees nearly: numerical integration gave those."""
    assert pytest.approx(expected, rel=1e-4 if freedom == int(freedom) else 0.015) == baseline.student(tail, freedom)


def alarms(reports: int, tolerance: float = TOLERANCE, **how: float) -> int:
    """Whole reports with an alarm, of so many runs of one machine, each against the one before."""
    runs = (samples.run(1, seed=seed, samples=5, **how) for seed in range(reports + 1))  # type: ignore[arg-type]
    return sum(compared(before, after, tolerance).regressions > 0 for before, after in pairwise(runs))


def test_no_shift_raises_an_alarm_in_at_most_one_of_a_hundred_whole_reports() -> None:
    """1,000 reports: every case of a report counts, and an alarm in any of them is a false one."""
    assert alarms(REPORTS, noise=0.01, between=0.02, passes=3) <= REPORTS / 100


@pytest.mark.parametrize(("passes", "between"), [(3, 0.02), (8, 0.03), (8, 0.0), (2, 0.03), (1, 0.03)])
def test_chance_alone_raises_no_more_alarms_where_nothing_is_tolerated(passes: int, between: float) -> None:
    """Here only the statistic stands between noise and an alarm; passes differ as places in memory do."""
    assert alarms(200, 0.0, passes=passes, between=between) <= 2


def test_the_simulation_would_show_a_statistic_that_allows_chance_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "chance", lambda before, after, cases: 0.0)
    assert alarms(20, 0.0) == 20


def test_blocks_of_neighbours_would_be_believed_too_much() -> None:
    """What passes are for: one pass of each run, taken for ten blocks, alarms in most reports at 3 % between passes."""
    as_if = (
        replace(run, results=tuple(replace(one, passes=len(one.blocks)) for one in run.results))
        for run in (samples.run(1, seed=seed, passes=1, samples=20, between=0.03) for seed in range(41))
    )
    assert sum(compared(before, after).regressions > 0 for before, after in pairwise(as_if)) > 20


@pytest.mark.parametrize(("noise", "drift"), [(0.10, 0.0), (0.25, 0.0), (0.02, 0.10)])
def test_noise_beyond_the_tolerance_is_not_taken_for_a_shift(noise: float, drift: float) -> None:
    """Scatter of a shared machine, and a machine that grows slower within each pass, in every run alike."""
    assert alarms(100, noise=noise, drift=drift) <= 1


@pytest.mark.parametrize("passes", [5, 8])
def test_a_shift_of_three_points_past_the_tolerance_is_found(passes: int) -> None:
    """Under 1 % noise, each in at least 99 of 100 runs; and nothing else of the report is blamed."""
    shifted = ("matmul bf16 8192", "matmul fp32 1024", "memory copy 1024 MiB")
    slower = dict.fromkeys(shifted, 1 / (1 - TOLERANCE - 0.03))
    found: Counter[str] = Counter()
    runs = 300
    for seed in range(runs):
        before = samples.run(1, seed=2 * seed, passes=passes)
        result = compared(before, samples.run(1, seed=2 * seed + 1, passes=passes, slower=slower))
        found.update(name for name, verdict in verdicts(result).items() if verdict == "regression")
    assert min(found[name] for name in shifted) >= 0.99 * runs
    assert sum(found[name] for name in found.keys() - set(shifted)) <= runs / 100


def test_a_shift_within_the_tolerance_is_none() -> None:
    found = compared(samples.run(1, seed=1), samples.run(1, seed=2, slower={"matmul bf16 8192": 1.04}))
    assert verdicts(found)["matmul bf16 8192"] == "same"


def test_a_gain_is_said_and_is_no_alarm() -> None:
    found = compared(samples.run(1, seed=1), samples.run(1, seed=2, slower={"matmul bf16 8192": 0.8}))
    assert verdicts(found)["matmul bf16 8192"] == "better"
    assert found.regressions == 0


def test_the_change_says_which_case_and_by_how_much() -> None:
    found = compared(samples.run(1, seed=1), samples.run(1, seed=2, slower={"memory copy 256 MiB": 1.25}))
    first = found.changes[0]
    assert (first.program, first.case, first.verdict) == ("memory", "copy 256 MiB", "regression")
    assert first.change == pytest.approx(-0.20, abs=0.01)
    assert first.noise is not None
    assert 0 < first.noise < 0.03


def one(unit: str, blocks: tuple[float, ...], median: float | None = None, **more: object) -> Result:
    found = filing.result("matmul", "a", "", [[1.0]] * 3, 1.0, "s")
    middle = blocks[len(blocks) // 2] if median is None else median
    return replace(found, unit=unit, median=middle, blocks=blocks, passes=len(blocks), **more)


@pytest.mark.parametrize(
    ("unit", "after", "verdict"),
    [
        ("GB/s", 0.951, "same"),
        ("GB/s", 0.949, "regression"),
        ("GB/s", 1.049, "same"),
        ("GB/s", 1.051, "better"),
        ("s", 1.049, "same"),
        ("s", 1.051, "regression"),
        ("s", 0.953, "same"),
        ("s", 0.951, "better"),
    ],
)
def test_five_percent_are_five_of_a_rate_lost_and_of_seconds_more(unit: str, after: float, verdict: str) -> None:
    """Without scatter the bound is the tolerance itself, of the baseline."""
    before, now = one(unit, (1.0,) * 3), one(unit, (after,) * 3)
    assert baseline.judge(before, now, TOLERANCE, "cuda", 1).verdict == verdict


def test_the_change_that_is_judged_is_the_one_whose_error_is_known() -> None:
    """The error is that of the means of the passes; a median over all samples may be elsewhere."""
    before, now = one("GB/s", (1.0, 1.0, 1.0)), one("GB/s", (1.0, 1.0, 1.0), median=0.8)
    assert baseline.judge(before, now, TOLERANCE, "cuda", 1).verdict == "same"


def test_seconds_that_rise_are_a_regression_and_seconds_that_fall_are_not() -> None:
    worse = compared(samples.run(1, seed=1), samples.run(1, seed=2, slower={"checks whole run": 2.0}))
    better = compared(samples.run(1, seed=1), samples.run(1, seed=2, slower={"checks whole run": 0.5}))
    assert verdicts(worse)["checks whole run"] == "regression"
    assert verdicts(better)["checks whole run"] == "better"


def test_what_differs_from_run_to_run_anyway_is_allowed_more() -> None:
    """An import of torch took 3.0 to 4.7 s on one and the same host."""
    found = compared(samples.run(1, seed=1), samples.run(1, seed=2, slower={"startup import torch": 1.4}))
    assert verdicts(found)["startup import torch"] == "same"


def test_too_few_samples_are_not_judged() -> None:
    few = samples.run(1, samples=2, passes=1), samples.run(1, samples=2, passes=1, slower={"startup cuInit": 3.0})
    found = compared(*few)
    assert verdicts(found)["startup cuInit"] == "unjudged"
    assert found.regressions == 0


@pytest.mark.parametrize("passes", [1, 2])
def test_of_one_pass_or_two_nobody_knows_the_next(passes: int) -> None:
    slower = {"matmul bf16 8192": 3.0, "host to host 256 MiB": 3.0}
    found = compared(samples.run(1), samples.run(1, passes=passes, slower=slower))
    assert verdicts(found)["matmul bf16 8192"] == "unjudged"
    assert verdicts(found)["host to host 256 MiB"] == "regression"  # how far its runs are apart was measured


def test_on_a_cpu_collectives_of_one_pass_are_not_judged_and_copies_are() -> None:
    """In four runs on a busy machine collectives fell by up to 97 %, and copies by half."""
    for program, verdict in (("collective", "unjudged"), ("memory", "regression")):
        before, now = (one("GB/s", (rate,) * 3, program=program, data={"size_bytes": 1024}) for rate in (1.0, 0.1))
        assert baseline.judge(replace(before, passes=1), now, TOLERANCE, "cpu", 1).verdict == verdict
        assert baseline.judge(before, now, TOLERANCE, "cpu", 1).verdict == "regression"


def test_an_earlier_baseline_is_read_and_what_it_does_not_say_is_not_believed(tmp_path: Path) -> None:
    """It has blocks of neighbours, and no word of passes."""
    old = json.loads(bench_json.encode(samples.run(1)))
    for each in old["results"]:
        del each["passes"]
    path = tmp_path / "base.json"
    path.write_text(json.dumps(old))
    found = verdicts(compared(baseline.read(str(path)), samples.run(1, seed=2)))
    assert (found["matmul bf16 8192"], found["host to host 256 MiB"]) == ("unjudged", "same")


TWO_GPUS = Path(__file__).parents[2] / "bench" / "results" / "2026-11-28-2-x-nvidia-h200.json"


def test_runs_over_two_healthy_gpus_are_no_regressions_of_each_other_and_eight_percent_lost_are() -> None:
    """Collectives and copies between GPUs, each of one pass; across hosts nobody knows how far runs are apart."""
    ran = json.loads(TWO_GPUS.read_bytes())["figures"]["bench_gpu"]["samples"]
    units = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    cases = {name: each for name, each in ran.items() if name.partition(" ")[0] in ("peer", "collective")}
    assert len(cases) == 62
    for name, medians in cases.items():
        program, _, case = name.partition(" ")
        *_, number, unit = case.split()
        size = int(number) * units[unit] if program == "collective" else 256 << 20
        made = [one("GB/s", (median,) * 3, program=program, data={"size_bytes": size}) for median in medians]
        made = [replace(each, passes=1) for each in made]
        for before, now in permutations(made, 2):
            assert baseline.judge(before, now, TOLERANCE, "cuda", 62).verdict in ("same", "better"), name
        slow = one("GB/s", (0.92 * medians[0],) * 3, program=program, data={"size_bytes": size})
        lost = replace(slow, passes=1)
        judged = baseline.judge(made[0], lost, TOLERANCE, "cuda", 62).verdict
        assert (judged == "regression") is (size > 64 << 20), name
        if program == "collective":
            assert baseline.judge(made[0], lost, TOLERANCE, "hosts", 62).verdict == "unjudged"


MEASURED = Path(__file__).parents[2] / "bench" / "results" / "2026-11-23-1-x-nvidia-h100-80gb-hbm3.json"


def test_runs_of_a_healthy_h100_are_no_regressions_of_each_other() -> None:
    """The medians of three runs, by which the spreads were chosen, as if each were without scatter."""
    ran = json.loads(MEASURED.read_bytes())["figures"]["bench_gpu"]["samples"]
    cases = {name: each for name, each in ran.items() if name.partition(" ")[0] in ("matmul", "memory", "host")}
    assert len(cases) == 28
    for name, medians in cases.items():
        program, _, case = name.partition(" ")
        way = case.rsplit(" ", 2)[0]
        made = [one("GB/s", (median,) * 3, program=program, data={"way": way}) for median in medians]
        for before, now in permutations(made, 2):
            assert baseline.judge(before, now, TOLERANCE, "cuda", 28).verdict == "same", name


def test_cases_of_one_run_only_are_named_and_not_judged() -> None:
    whole = samples.run(1)
    part = replace(whole, results=whole.results[:-1])
    assert "gone" in verdicts(compared(whole, part)).values()
    assert "new" in verdicts(compared(part, whole)).values()


def test_a_gpu_is_compared_with_the_one_in_its_place() -> None:
    """A GPU that was exchanged has another UUID."""
    before = samples.run(2, seed=1)
    gpus = tuple(replace(gpu, uuid=f"GPU-new-{at}") for at, gpu in enumerate(before.provenance.gpus))
    renamed = {old.target: new.target for old, new in zip(before.provenance.gpus, gpus, strict=True)}
    results = tuple(replace(one, target=renamed.get(one.target, one.target)) for one in samples.run(2, seed=2).results)
    after = replace(before, provenance=replace(before.provenance, gpus=gpus), results=results)
    assert {"same"} == set(verdicts(compared(before, after)).values())


def test_more_cases_ask_for_more_evidence() -> None:
    blocks = (1.0, 1.01, 0.99, 1.02, 0.98)
    assert baseline.chance(blocks, blocks, 1) < baseline.chance(blocks, blocks, 100)


def test_no_scatter_is_no_noise() -> None:
    assert baseline.chance((2.0, 2.0, 2.0), (2.0, 2.0, 2.0), 10) == 0.0


def test_the_noise_is_a_fraction_and_the_change_too() -> None:
    before, after = samples.run(1, seed=1), samples.run(1, seed=2)
    judged: list[Change] = [change for change in compared(before, after).changes if change.noise is not None]
    assert all(0 <= (change.noise or 0) < 1 and math.isfinite(change.change or 0) for change in judged)


# ---- what may be compared --------------------------------------------------------------------------------------------


def test_a_saved_run_reads_back_as_it_was(tmp_path: Path) -> None:
    made, path = samples.run(2), tmp_path / "base.json"
    path.write_bytes(bench_json.encode(made))
    assert made == baseline.read(str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"not json", "no result of probe bench"),
        (b'{"schema":"probe.report/1"}', "no result of probe bench"),
        (b"", "no res"),
    ],
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words):
        baseline.read(str(path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partial": True}, "it is partial"),
        ({"programs": (Program("memory", Done.FAIL, "torch not installed", 1.0, 1.0),)}, "memory: torch not installed"),
        ({"results": (replace(samples.run(1).results[0], verified=False),)}, "was computed wrongly"),
        ({"results": (replace(samples.run(1).results[0], blocks=(1e-300, 1e300, 1e300)),)}, "nobody measures"),
        ({"results": (replace(samples.run(1).results[0], median=1e300),)}, "nobody measures"),
    ],
)
def test_a_run_that_lacks_something_is_no_baseline(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(bench_json.encode(replace(samples.run(1), **changes)))
    with pytest.raises(UsageError, match=words):
        baseline.read(str(path))


def test_a_result_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(bench_json.encode(replace(samples.run(1), schema="probe.bench/2")))
    with pytest.raises(UsageError, match=r"probe\.bench/2"):
        baseline.read(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        baseline.read(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"cpu": "Another CPU"}, "CPU"),
        ({"device": "cpu", "gpus": ()}, "device"),
        ({"gpus": (samples.h100(0), samples.h100(1))}, "GPUs"),
        ({"gpus": (replace(samples.h100(), name="NVIDIA H200"),)}, "NVIDIA H200"),
        ({"gpus": (replace(samples.h100(), memory_bytes=40 << 30),)}, "40 GiB"),
    ],
)
def test_other_hardware_is_refused_by_name(change: dict[str, object], named: str) -> None:
    before = samples.run(1)
    with pytest.raises(UsageError, match=named):
        baseline.refuse_other_hardware(before, replace(before.provenance, **change), "base.json")


def test_a_sister_machine_and_another_driver_are_compared_and_the_driver_is_named() -> None:
    before = samples.run(1)
    now = replace(before.provenance, driver="590.1", gpus=(replace(samples.h100(), uuid="GPU-other"),), cores=64)
    baseline.refuse_other_hardware(before, now, "base.json")
    assert baseline.differences(before.provenance, now) == ("driver: 580.159.04 -> 590.1",)
