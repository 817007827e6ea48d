"""The report for Nagios and Icinga, by the plugins' guidelines and as their own Perl library reads it."""

import json
import re
import subprocess

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from probe import exits
from probe.model import Profile, Report, Status, Verdict
from probe.report.nagios import encode
from tests.report.hostile import reports
from tests.report.machines import MACHINES, sick_8_gpus
from tests.report.samples import GPUS, outcome, report

# https://www.monitoring-plugins.org/doc/guidelines.html: label=value[UOM];[warn];[crit];[min];[max]
NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
ITEM = re.compile(rf"('[^'=]*'|[^' =]+)=({NUMBER})(s|%|[KMT]?B|c)?((?:;(?:{NUMBER})?){{0,4}})(?: |$)")
FIRST = re.compile(r"PROBE (OK|WARNING|CRITICAL|UNKNOWN) - ([^|]*) \| ([^|]*)")

Perfdata = dict[str, tuple[float, str, str]]


def read(made: Report) -> tuple[str, str, Perfdata, list[str]]:
    """The word, the text, the perfdata and the long text."""
    first, *more, end = encode(made).decode().split("\n")
    assert "" == end
    found = FIRST.fullmatch(first)
    assert found
    return found[1], found[2], perfdata(found[3]), more


def perfdata(text: str) -> Perfdata:
    items = list(ITEM.finditer(text))
    assert text == "".join(item[0] for item in items)
    labels = [item[1].strip("'") for item in items]
    assert len(labels) == len(set(labels))
    return {
        label: (float(item[2]), item[3] or "", item[4].strip(";")) for label, item in zip(labels, items, strict=True)
    }


def test_the_first_line_says_what_the_text_report_says() -> None:
    word, text, _, more = read(sick_8_gpus())
    assert "CRITICAL" == word
    assert "unhealthy: GPU 3: no answer. Reset this GPU, or reboot. [host_admin] +4 more" == text
    assert "CUDA_KERNEL_HANGS [host_admin] GPU 3: no answer" == more[0]
    assert len([line for line in more if line.startswith("pass")]) > 20


def test_what_does_not_fit_is_said_to_be_more() -> None:
    made = report(*(outcome(f"service.http.web{n}", "warn", f"{'slow ' * n}", target=f"{n}") for n in range(99)))
    assert "... more lines; --format json has all" == read(made)[3][-1]


def test_the_perfdata_has_the_time_the_counts_and_the_temperatures() -> None:
    _, _, found, _ = read(sick_8_gpus())
    assert (4.1, "s", "0;9") == found.pop("elapsed")
    counts = {"pass": 156, "skip": 1, "warn": 1, "fail": 2, "unknown": 1, "timeout": 1}
    assert counts == {status.value: found.pop(status.value)[0] for status in Status}
    names = [gpu.removeprefix("gpu:")[:12] for gpu in GPUS]
    expected = {f"{name} {whose}_celsius": (float(n), "", "") for name in names for whose, n in HEAT.items()}
    assert expected == found


HEAT = {"gpu": 41, "memory": 47}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "41", None])
def test_what_is_no_number_is_no_perfdata(value: float | str | None) -> None:
    _, _, found, _ = read(report(outcome("nvml.temperature", "pass", target=GPUS[0], gpu_celsius=value)))
    assert ["elapsed", *Status] == list(found)


@pytest.mark.parametrize(("status", "target"), [("unknown", GPUS[0]), ("pass", "gpu:*"), ("pass", "")])
def test_what_was_not_observed_on_a_gpu_is_no_perfdata(status: str, target: str) -> None:
    _, _, found, _ = read(report(outcome("nvml.temperature", status, target=target, gpu_celsius=2**32 - 1)))
    assert ["elapsed", *Status] == list(found)


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("profile", Profile)
def test_the_word_agrees_with_the_exit_code(verdict: Verdict, profile: Profile) -> None:
    code = exits.code("nagios", verdict.value, liveness=profile is Profile.LIVENESS)
    made = replace(report(profile=profile), verdict=verdict, exit_code=code)
    assert ("OK", "WARNING", "CRITICAL", "UNKNOWN")[code] == read(made)[0]


def test_an_interrupted_liveness_is_unknown() -> None:
    """Its verdict is that of a run that could not tell, its exit code is not."""
    made = replace(report(profile=Profile.LIVENESS), verdict=Verdict.UNDETERMINED, exit_code=3)
    assert "UNKNOWN" == read(made)[0]


def test_64_gpus_and_long_words_fit() -> None:
    gpus = [f"gpu:GPU-{number:08x}-1234-5678-9abc-def012345678" for number in range(64)]
    checks = [
        outcome("nvml.temperature", "fail", "温" * 500, target=gpu, gpu_celsius=41, memory_celsius=47) for gpu in gpus
    ]
    made = report(*checks)
    first, second, *_ = encode(made).splitlines()
    assert len(encode(made)) <= 4096
    assert 1900 < len(first.partition(b" | ")[2]) <= 2048
    assert second.startswith(b"TOO_HOT")


def test_a_label_has_no_sign_that_ends_it() -> None:
    made = report(outcome("nvml.temperature", "pass", target="gpu:it's=|x", gpu_celsius=41))
    assert (41, "", "") == read(made)[2]["itsx gpu_celsius"]


@given(reports)
def test_any_report_is_readable(made: Report) -> None:
    word, _, found, more = read(made)
    assert word in ("OK", "WARNING", "CRITICAL", "UNKNOWN")
    assert len(encode(made)) <= 4096
    assert all(status.value in found for status in Status)
    assert not [line for line in more if "|" in line]


# ------------------------------------------------------------------------------ Debian's libmonitoring-plugin-perl

PERL = """
use Monitoring::Plugin::Performance; use JSON::PP; local $/; binmode(STDIN, ":utf8");
my @found = Monitoring::Plugin::Performance->parse_perfstring(<STDIN>);
print encode_json([map { [$_->label, $_->value + 0, $_->uom // ""] } @found]);
"""


def by_the_library(text: str) -> list[list[object]]:
    argv = ["perl", "-e", PERL]
    made = subprocess.run(argv, input=text.encode(), capture_output=True, check=True, timeout=20)
    found: list[list[object]] = json.loads(made.stdout)
    return found


def same(made: Report) -> None:
    text = encode(made).decode().partition("\n")[0].partition(" | ")[2]
    expected = [[label, pytest.approx(value), unit] for label, (value, unit, _) in perfdata(text).items()]
    assert expected == by_the_library(text)


@pytest.mark.system
@pytest.mark.parametrize("machine", MACHINES)
def test_the_plugins_own_library_reads_the_perfdata(machine: str) -> None:
    same(MACHINES[machine]())


@pytest.mark.system
@given(reports)
@settings(max_examples=30)
def test_the_plugins_own_library_reads_the_perfdata_of_any_report(made: Report) -> None:
    same(made)
