"""device.smi: what nvidia-smi prints, and what it means that it is not there."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.checks.device_smi import counted, shown
from probe.model import Facts, Finding, Record, Status
from tests.checks.asking import ask

GPU = Facts(nodes=("nvidia0",))
NVML = ("nvml", Record("init", code=0))


def smi(text: str, status: int = 0, *records: tuple[str, Record], stderr: str = "") -> Finding:
    output = ("smi", Record("output", code=status, text=text, elapsed_s=0.1, data={"stderr": stderr}))
    return ask("device.smi", output, *records, facts=GPU)


@pytest.mark.parametrize(("text", "count"), [("1\n", 1), ("2\n2\n", 2), ("8\r\n" * 8, 8), ("3\n3\n3", 3)])
def test_as_many_lines_as_gpus_each_with_their_number_pass(text: str, count: int) -> None:
    finding = smi(text)
    assert (Status.PASS, count) == (finding.status, finding.data["found"])


GARBAGE = [
    ("", "printed nothing"),
    ("2\n", "1 lines, which say 2"),
    ("2\n2\n2\n", "3 lines, which say 2"),
    ("2\n3\n", "2 lines, which say 2, 3"),
    ("2\nERR!\n", '"ERR!" instead of a number'),
    ("[Unknown Error]\n2\n", '"[Unknown Error]" instead of a number'),
    ("2\n\n2\n", '"" instead of a number'),
    ("-2\n-2\n", '"-2" instead of a number'),
    ("٢\n٢\n", '"?" instead of a number'),
    ("1\n" * 5000, "5000 lines"),
    ("Unable to determine the device handle for GPU0000:5D:00.0: Unknown Error\n", "Unable to determine"),
]


@pytest.mark.parametrize(("text", "words"), GARBAGE, ids=range(len(GARBAGE)))
def test_an_exit_status_of_zero_is_not_enough(text: str, words: str) -> None:
    """pytorch/test-infra#3967: it ends with 0 while a GPU has crashed."""
    finding = smi(text)
    assert (Status.FAIL, "garbage") == (finding.status, finding.data["reason"])
    assert words in finding.summary


@pytest.mark.parametrize(
    ("text", "stderr", "words"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.1\n", "", "mismatch"),
        ("", "nvidia-smi: symbol lookup error\n", "symbol lookup error"),
        ("\x1b[31mNo devices\x07 were found", "", "?[31mNo devices? were found"),
        ("", "", "nothing"),
    ],
)
def test_another_exit_status_is_a_failure_in_its_own_words(text: str, stderr: str, words: str) -> None:
    finding = smi(text, 18, stderr=stderr)
    assert (Status.FAIL, 18) == (finding.status, finding.data["smi_status"])
    assert "nvidia-smi ended with 18: " in finding.summary
    assert words in finding.summary
    assert finding.summary.isprintable()


def test_a_corrupted_inforom_is_a_warning_where_all_gpus_are_listed() -> None:
    """It ends with 14 then, and with what was asked for (Datura-ai/lium-io#707)."""
    assert (Status.WARN, "inforom") == (smi("2\n2\n", 14).status, smi("2\n2\n", 14).data["reason"])
    assert Status.FAIL is smi("ERR!\n", 14).status


MISSING = "nvidia-smi: No such file or directory\n"


def test_its_absence_is_a_warning_where_nvml_works_and_never_worse() -> None:
    finding = smi("", 127, NVML, stderr=MISSING)
    assert (Status.WARN, "absent") == (finding.status, finding.data["reason"])


@pytest.mark.parametrize("nvml", [[], [("nvml", Record("init", code=12))]])
def test_its_absence_says_nothing_where_nvml_does_not_work(nvml: list[Any]) -> None:
    assert Status.SKIP is smi("", 127, *nvml, stderr=MISSING).status


def test_one_that_cannot_load_its_libraries_is_not_absent() -> None:
    """The dynamic linker ends with 127 too."""
    words = "nvidia-smi: error while loading shared libraries: libnvidia-ml.so.1: cannot open shared object file"
    finding = smi("", 127, NVML, stderr=words)
    assert (Status.FAIL, "status") == (finding.status, finding.data["reason"])
    assert "libnvidia-ml.so.1" in finding.summary


numbers = st.integers(1, 64).flatmap(lambda n: st.lists(st.just(n), min_size=1, max_size=70))


@given(st.one_of(st.text(), numbers.map(lambda found: "\n".join(map(str, found)))))
def test_only_n_lines_that_say_n_are_a_count(text: str) -> None:
    """Whatever is printed: a count is believed when every line says it, and said in printable words otherwise."""
    found = counted(text)
    lines = text.splitlines()
    if isinstance(found, int):
        assert [found] * found == [int(line) for line in lines]
    else:
        assert found.isprintable()
        assert len(found) < 300


@given(st.text(max_size=5000))
def test_its_words_are_fit_to_be_shown(text: str) -> None:
    words = shown(text)
    assert words.isascii()
    assert words == "" or words.isprintable()
    assert len(words) <= 160
