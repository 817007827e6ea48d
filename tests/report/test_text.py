"""The report for people: its first line, its 4096 bytes, its words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from probe.model import Cause, Outcome, Reference, Report, Severity, Status, Verdict, Who
from probe.report.text import folded, headline, progress_line, render, speaker, use_colour
from tests.report.samples import GPUS, OF_THE_NODE, PER_GPU, healthy, outcome, report

LONG = "a very long explanation of what happened " * 20


def first(made: Report) -> str:
    return render(made).partition("\n")[0]


def lines(made: Report, status: str) -> list[str]:
    return [line for line in render(made).splitlines() if line.startswith(f"{status} ")]


# --------------------------------------------------------------------------------------------------- the first line


def test_unhealthy_says_the_cause_the_remedy_and_who() -> None:
    summary = "NVML 18: driver/library version mismatch (kernel 580.159, library 570.86)"
    expected = f"unhealthy: {summary}. Drain, then reload the driver or reboot. [host_admin]"
    assert expected == first(report(outcome("nvml.reach", summary=summary, nvml_code=18)))


def test_further_causes_are_counted() -> None:
    made = report(
        outcome("nvml.reach", summary="NVML 18", nvml_code=18), outcome("service.ssh"), outcome("service.x.y")
    )
    assert first(made).endswith("[host_admin] +2 more")


def test_healthy_says_what_was_really_tested() -> None:
    expected = "healthy: 8 x NVIDIA H100 80GB HBM3 computed exactly; 35 checks passed in 4.1 s"
    assert expected == first(report(*healthy()))


@pytest.mark.parametrize(
    ("left_out", "tested"),
    [
        ("torch.", "8 x NVIDIA H100 80GB HBM3 ran a verified kernel; 31 checks passed in 4.1 s"),
        ("torch. cuda.", "8 x NVIDIA H100 80GB HBM3 answered NVML; 27 checks passed in 4.1 s"),
        ("torch. cuda. nvml.", "11 checks passed in 4.1 s"),
    ],
)
def test_healthy_claims_no_more_than_the_furthest_rung_that_passed(left_out: str, tested: str) -> None:
    outcomes = [seen for seen in healthy() if not seen.id.startswith(tuple(left_out.split()))]
    assert f"healthy: {tested}" == first(report(*outcomes))


def test_healthy_on_a_cpu_says_so() -> None:
    made = report(*(outcome("torch.tensor", "pass", "exact", target=f"cpu:{n}") for n in range(2)))
    assert "healthy: CPU computed exactly; 1 check passed in 4.1 s" == first(made)


def test_what_was_not_tested_stands_in_the_first_line() -> None:
    notes = ("2 GPUs busy, not computed on", "torch not installed (looked in /usr/bin/python3)")
    expected = "; 2 GPUs busy, not computed on; torch not installed (looked in /usr/bin/python3)"
    assert first(report(*healthy(), notes=notes)).endswith(expected)


def test_a_note_loses_its_reasons_before_the_cause_loses_words() -> None:
    summary = "NVML 18: driver/library version mismatch (kernel 580.159, library 570.86)"
    note = "torch not installed (looked in /usr/bin/python3, /opt/conda/bin/python3, /usr/local/bin/python3)"
    made = report(outcome("nvml.reach", summary=summary, nvml_code=18), notes=(note,))
    expected = f"unhealthy: {summary}. Drain, then reload the driver or reboot. [host_admin] (torch not installed)"
    assert expected == first(made)
    assert f"note: {note}" == render(made).splitlines()[1]


def test_undetermined_without_a_cause_says_why() -> None:
    assert "undetermined: no check ended in pass or warn" == first(report(outcome("nvml.ecc", "skip", "not here")))


def test_a_long_cause_leaves_room_for_the_remedy() -> None:
    made = report(outcome("device.nodes", summary=LONG, reason="eperm"), notes=("2 GPUs busy, not computed on",))
    line = first(made)
    assert len(line) <= 200
    assert "Recreate the container: it lost the permission to open its GPU devices. [container_restart]" in line
    assert "(2 GPUs busy, not computed on)" in line


# --------------------------------------------------------------------------------------------------------- the body


def test_what_follows_stands_beneath_its_cause() -> None:
    outcomes = [outcome("cuda.init", summary="cuInit: CUDA 802", cuda_code=802)]
    outcomes += [outcome("torch.tensor", "skip", "needs cuda.init", target=gpu) for gpu in GPUS]
    text = render(report(*outcomes))
    assert "\nCUDA_INIT_802 [host_admin] cuInit: CUDA 802\n  remedy: On the host: `systemctl" in text
    assert "\n  explains: torch.tensor (8 GPUs)\n" in text


def test_gpus_that_passed_share_a_line_with_ranges_of_their_numbers() -> None:
    assert "pass     nvml.temperature    8 GPUs: 40 to 47 C of 90 C  0.25 s" in lines(report(*healthy()), "pass")


def test_problems_stand_before_skips_and_skips_before_passes() -> None:
    made = report(outcome("device.shm", "pass"), outcome("device.smi", "skip", "no nvidia-smi"), outcome("nvml.reach"))
    found = [line.split()[0] for line in render(made).splitlines()[-3:]]
    assert ["fail", "skip", "pass"] == found


def test_problems_that_differ_keep_a_line_each() -> None:
    words = ("word 7 differs", "word 12 differs")
    made = report(
        *(
            outcome("cuda.kernel", summary=said, target=gpu, reason="wrong_words")
            for said, gpu in zip(words, GPUS, strict=False)
        )
    )
    expected = [f"fail     cuda.kernel         GPU-000000a{n}: {said}  0.25 s" for n, said in enumerate(words)]
    assert expected == lines(made, "fail")


def test_an_advisory_failure_is_marked_as_one() -> None:
    made = report(outcome("nvml.mode", severity="advisory"))
    assert ["fail     nvml.mode           (advisory) it is bad  0.25 s"] == lines(made, "fail")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["41 C"], "41 C"),
        (["41 C", "41 C"], "41 C"),
        (["41 C of 90", "9.5 C of 90", "47 C of 90"], "9.5 to 47 C of 90"),
        (["idle", "busy"], "idle (and others)"),
    ],
)
def test_texts_fold_into_one(texts: list[str], expected: str) -> None:
    assert expected == folded(texts)


# ---------------------------------------------------------------------------------------------------------- it fits


def all_failing(summary: str, severity: str = "critical") -> list[Outcome]:
    node = [outcome(check, summary=f"{check}: {summary}", severity=severity) for check in OF_THE_NODE]
    each = [
        outcome(check, summary=f"GPU {number} {summary}", target=gpu, severity=severity)
        for check in PER_GPU
        for number, gpu in enumerate(GPUS)
    ]
    return node + each


@pytest.mark.parametrize("summary", ["it is bad", LONG, "温度 " * 200, "naïve\n" * 100], ids=range(4))
@pytest.mark.parametrize("severity", ["critical", "advisory"])
@pytest.mark.parametrize("colour", [False, True])
def test_8_gpus_on_which_everything_fails_fit_in_4096_bytes(summary: str, severity: str, colour: bool) -> None:
    text = render(report(*all_failing(summary, severity), notes=(LONG, LONG)), colour=colour)
    assert len(text.encode()) <= 4096
    assert len(text.partition("\n")[0]) <= 200 + 9 * colour


def test_with_everything_failing_no_check_goes_unnamed() -> None:
    """Several that ended alike share a line, in which a rung is named once: ``nvml.ecc .remap``."""
    text = render(report(*all_failing("it is bad")))
    unnamed = [check for check in (*OF_THE_NODE, *PER_GPU) if check not in text]
    assert [] == [check for check in unnamed if f" .{check.partition('.')[2]}" not in text]


def test_passing_lines_go_first_and_are_counted() -> None:
    outcomes = [outcome(f"service.http.web{n}", "pass", "200 in 0.01 s " * 4) for n in range(60)]
    text = render(report(outcome("nvml.reach", summary="NVML 18", nvml_code=18), *outcomes))
    shown = sum(line.startswith("pass") for line in text.splitlines())
    assert 0 < shown < 60
    assert f"... {60 - shown} more lines; --format json has all\n" == text.splitlines(keepends=True)[-1]
    assert lines(report(outcome("nvml.reach", summary="NVML 18", nvml_code=18)), "fail")[0] in text


def test_verbose_leaves_nothing_out() -> None:
    text = render(report(*all_failing(LONG)), verbose=True)
    assert len(OF_THE_NODE) + len(PER_GPU) * len(GPUS) == sum(line.startswith("fail") for line in text.splitlines())
    assert LONG.strip() in text


any_text = st.text(st.characters(codec=None, categories=None), max_size=300)
any_outcomes = st.lists(
    st.builds(
        Outcome,
        st.sampled_from([*OF_THE_NODE, *PER_GPU]),
        st.sampled_from(["", "gpu:*", "cpu:0", *GPUS]),
        st.sampled_from(Status),
        st.sampled_from(Severity),
        any_text,
        st.floats(0, 9),
        st.floats(0, 9),
        st.dictionaries(st.sampled_from(["gpu_name", "x"]), any_text),
    ),
    unique_by=lambda seen: (seen.id, seen.target),
    max_size=40,
)


@given(any_outcomes, st.lists(any_text, max_size=3), st.sampled_from([None, 20, 80]))
def test_any_report_fits_and_begins_with_its_verdict(
    outcomes: list[Outcome], notes: list[str], width: int | None
) -> None:
    made = report(*outcomes, notes=tuple(notes))
    text = render(made, width=width)
    assert text.startswith(made.verdict.value + ": ")
    assert text.endswith("\n")
    assert len(text.encode()) <= 4096
    assert len(text.partition("\n")[0]) <= 200


@given(any_text, any_text, st.sampled_from(Verdict), st.sampled_from(Who), st.lists(any_text, max_size=4))
def test_the_first_line_of_any_cause_fits(
    summary: str, remedy: str, verdict: Verdict, who: Who, notes: list[str]
) -> None:
    causes = [Cause("CODE", summary, remedy, who, (Reference("nvml.reach", ""),))] * 12
    made = replace(report(causes=causes, notes=tuple(notes)), verdict=verdict)
    line = headline(made, speaker([]))
    assert len(line) <= 200
    assert line.startswith(verdict.value)


# ------------------------------------------------------------------------------------------------ names and colours


def test_a_gpu_is_named_by_the_first_8_digits() -> None:
    assert "GPU-000000a0 and GPU-000000a1" == speaker(GPUS)(f"{GPUS[0][4:]} and {GPUS[1][4:]}")


def test_gpus_whose_first_digits_agree_keep_more_of_them() -> None:
    twins = ("gpu:GPU-0f32aaaa-1111-2222-3333-444444444444", "gpu:GPU-0f32aaaa-9999-2222-3333-444444444444")
    assert ["gpu:GPU-0f32aaaa-1111", "gpu:GPU-0f32aaaa-9999"] == [speaker(twins)(name) for name in twins]


def test_a_summary_does_not_repeat_the_name_of_its_gpu() -> None:
    made = outcome("cuda.kernel", summary=f"{GPUS[0][4:]}: word 7 differs", target=GPUS[0])
    assert "fail     cuda.kernel         GPU-000000a0: word 7 differs  0.25 s" == progress_line(made)


def test_neither_secrets_nor_escapes_reach_the_terminal() -> None:
    evil = "http://u:s3cr3t@h HF_TOKEN=s3cr3t \x1b[2J\u202e\r\nhealthy: all is well"
    text = render(report(outcome("service.http.x", summary=evil), notes=(evil,)), verbose=True)
    assert not {"s3cr3t", "\x1b", "\u202e", "\r"} & {bad for bad in ("s3cr3t", "\x1b", "\u202e", "\r") if bad in text}
    assert not [line for line in text.splitlines() if line.startswith("healthy")]


def test_colour_is_only_around_words() -> None:
    made = report(outcome("nvml.reach", summary="NVML 18", nvml_code=18), outcome("device.shm", "pass"))
    plain = render(made, colour=True).replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "")
    assert render(made) == plain


@pytest.mark.parametrize(
    ("tty", "env", "expected"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": "0"}, False),
        (False, {"FORCE_COLOR": ""}, False),
        (False, {"FORCE_COLOR": "1", "TERM": "dumb"}, True),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colour_is_for_terminals_unless_the_environment_says_otherwise(
    tty: bool, env: dict[str, str], expected: bool
) -> None:
    assert expected is use_colour(tty, env)


def test_lines_about_what_passed_are_cut_to_the_terminal() -> None:
    made = report(outcome("device.shm", "pass", LONG), outcome("nvml.reach", "warn", LONG[:100]))
    text = render(made, width=60)
    assert {60} == {len(line) for line in text.splitlines() if line.startswith("pass")}
    assert LONG[:100].strip() in next(line for line in text.splitlines() if line.startswith("warn"))
