"""The line for node-problem-detector, by its own rules: the first 80 bytes of stdout, trimmed, are the message."""

import re

import pytest
from hypothesis import given
from msgspec.structs import replace

from probe.model import Cause, Report, Verdict, Who
from probe.report.npd import encode
from tests.report.hostile import reports
from tests.report.machines import healthy_h100, sick_8_gpus
from tests.report.samples import outcome, report


def line(made: Report) -> str:
    """What the node's condition gets, which is all of it."""
    message = encode(made).strip()[:80]
    assert message + b"\n" == encode(made)
    return message.decode()


def caused(code: str, summary: str) -> Report:
    return replace(report(causes=[Cause(code, summary, "", Who.USER, ())]), verdict=Verdict.UNHEALTHY)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("GPU_DRIVER_STUCK", "GpuDriverStuck"),
        ("CUDA_INIT_802", "CudaInit802"),
        ("XID_79", "Xid79"),
        ("|\n", "Unhealthy"),
        ("802_CUDA", "Cuda"),
    ],
)
def test_the_reason_is_the_causes_code_in_camel_case(code: str, expected: str) -> None:
    assert f"{expected}: it hangs" == line(caused(code, "it hangs"))


def test_a_long_summary_is_cut_between_characters() -> None:
    made = line(caused("NVML_18", "a温度" * 40))
    assert made.endswith("...")
    assert 77 <= len(made.encode()) <= 80


def test_a_long_code_leaves_room_for_the_summary() -> None:
    assert line(caused("A" * 100, "it hangs")).endswith("a: it hangs")


def test_the_first_cause_is_the_one() -> None:
    assert "CudaKernelHangs: GPU 3: no answer" == line(sick_8_gpus())


def test_without_a_cause_the_verdict_is_the_reason() -> None:
    assert line(healthy_h100()).startswith("Healthy: 1 x NVIDIA H100 80GB HBM3 computed exactly; 34 checks passed")
    assert "Undetermined: no check ended in pass or warn" == line(report(outcome("nvml.ecc", "skip", "not here")))


@given(reports)
def test_any_report_is_one_line_that_fits(made: Report) -> None:
    assert re.match(r"[A-Z][A-Za-z0-9]*:", line(made))
    assert line(made).isprintable() or not re.search(r"[\x00-\x1f\x7f-\x9f]", line(made))
