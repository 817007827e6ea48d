"""What holds for every format: secrets stay inside, and nothing in a report can keep it from being made."""

import subprocess
import sys

import pytest
from hypothesis import given

from probe.model import Report
from probe.report.formats import FORMATS, encode
from tests.report.hostile import SECRET, reports
from tests.report.machines import EVIL, MACHINES, NAMES, golden, sick_8_gpus
from tests.report.samples import GPUS, outcome, report


@pytest.mark.parametrize("format_", FORMATS)
@given(made=reports)
def test_no_report_breaks_a_format_or_shows_a_secret(format_: str, made: Report) -> None:
    data = encode(format_, made)
    assert data.endswith(b"\n")
    assert SECRET not in data.decode()


@pytest.mark.parametrize("format_", FORMATS)
def test_the_planted_secrets_are_shown_by_none(format_: str) -> None:
    assert "s3cr3t" in EVIL
    assert b"s3cr3t" not in encode(format_, sick_8_gpus())


@pytest.mark.parametrize("format_", NAMES)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_golden_files_are_of_today(machine: str, format_: str) -> None:
    """If not: ``python -m tests.report.machines``, and look at what changed."""
    assert golden(machine, format_).read_bytes() == encode(format_, MACHINES[machine]())


def test_a_format_is_imported_when_it_is_asked_for() -> None:
    program = (
        "import sys; from probe.report.formats import FORMATS; "
        "print(*(f for f in FORMATS if f'probe.report.{f}' in sys.modules))"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert "\n" == made.stdout


def test_colour_and_width_are_for_text() -> None:
    made = report(outcome("nvml.reach", "warn", "slow"), outcome("cuda.kernel", "pass", "x" * 300, target=GPUS[0]))
    plain = encode("text", made)
    assert b"\x1b[33m" in encode("text", made, colour=True)
    assert len(encode("text", made, width=60)) < len(plain)
    assert b"\x1b" not in plain
