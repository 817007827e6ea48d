"""ECC, row remapping, SRAM and page retirement, with the figures of a real H100 and one thing wrong at a time."""

from typing import Any

import pytest

from probe.model import Finding, Record, Status
from tests.checks.asking import GPU, ask

ECC = {
    "mode": 1,
    "pending": 1,
    "volatile_corrected": 0,
    "volatile_uncorrected": 0,
    "aggregate_corrected": 0,
    "aggregate_uncorrected": 0,
}
REMAP = {"corrected": 0, "uncorrected": 0, "pending": 0, "failed": 0}
SRAM = {"exceeded": 0, "volatile_uncorrected": 0, "aggregate_uncorrected": 0}
PAGES = {"single_bit": 0, "double_bit": 0, "pending": 0}


def said(getter: str, data: dict[str, Any], **wrong: Any) -> tuple[str, Record]:
    return ("nvml", Record(getter, code=0, data={**data, **wrong}))


def ecc(**wrong: Any) -> Finding:
    return ask("nvml.ecc", said("ecc", ECC, **wrong), target=GPU)


def remap(*, with_ecc: dict[str, Any] | None = None, thresholds: dict[str, int] | None = None, **wrong: Any) -> Finding:
    records = said("remap", REMAP, **wrong), said("ecc", ECC, **(with_ecc or {}))
    return ask("nvml.remap", *records, target=GPU, thresholds=thresholds, products=("NVIDIA GeForce RTX 4090",))


def sram(**wrong: Any) -> Finding:
    return ask("nvml.sram", said("sram", SRAM, **wrong), target=GPU)


def pages(**wrong: Any) -> Finding:
    return ask("nvml.pages", said("pages", PAGES, **wrong), target=GPU)


def test_memory_without_errors_passes_with_its_counts() -> None:
    """The number and the threshold are in the sentence, all counts in the data."""
    finding = ecc()
    assert finding.status is Status.PASS
    assert finding.summary == "0 uncorrected memory errors since the last reset, at most 0 allowed"
    assert finding.data["aggregate_uncorrected_errors"] == 0


def test_one_uncorrected_error_since_the_last_reset_fails() -> None:
    """As with DCGM, gcm and healthagent."""
    finding = ecc(volatile_uncorrected=1)
    assert (finding.status, finding.data["volatile_uncorrected_errors"]) == (Status.FAIL, 1)


def test_errors_of_its_whole_life_are_reported_and_not_judged() -> None:
    """The aggregate count survives a repair, corrected errors are ECC at work."""
    finding = ecc(aggregate_uncorrected=7, aggregate_corrected=9000, volatile_corrected=12)
    assert (finding.status, finding.data["aggregate_uncorrected_errors"]) == (Status.PASS, 7)


def test_the_allowed_number_of_errors_can_be_set() -> None:
    limits = {"max_uncorrected_errors": 1}
    finding = ask("nvml.ecc", said("ecc", ECC, volatile_uncorrected=1), target=GPU, thresholds=limits)
    assert finding.status is Status.PASS


def test_with_ecc_off_there_is_nothing_to_judge() -> None:
    """Off is how workstation boards are delivered; no pass either, since nothing was counted."""
    finding = ask("nvml.ecc", ("nvml", Record("ecc", code=0, data={"mode": 0, "pending": 1})), target=GPU)
    assert (finding.status, finding.data["ecc_on_after_reset"]) == (Status.SKIP, True)


@pytest.mark.parametrize("count", [1 << 40, (1 << 64) - 1, -1])
def test_a_count_that_cannot_be_is_unknown(count: int) -> None:
    """All ones is what a GPU gives that no longer answers its bus."""
    finding = ecc(volatile_uncorrected=count)
    assert finding.status is Status.UNKNOWN
    assert f"makes no sense: {count} volatile uncorrected errors" in finding.summary
    assert ecc(mode=7).status is Status.UNKNOWN


def test_rows_that_were_replaced_are_no_fault() -> None:
    finding = remap(corrected=2, uncorrected=1)
    assert finding.status is Status.PASS
    assert finding.summary == "3 rows remapped (1 for uncorrectable errors), none pending, none failed"


def test_a_row_that_waits_for_a_reset_warns() -> None:
    """NVIDIA: meanwhile neither accuracy nor performance suffers, and new workloads can be launched."""
    finding = remap(uncorrected=1, pending=1)
    assert (finding.status, finding.data["remap_pending"]) == (Status.WARN, True)


def test_a_row_that_could_not_be_replaced_fails_whatever_is_pending() -> None:
    """NVIDIA's criterion for an RMA."""
    finding = remap(uncorrected=8, pending=1, failed=1)
    assert (finding.status, finding.data["remap_failed"]) == (Status.FAIL, True)


def test_many_replaced_rows_warn_from_dcgms_512_on() -> None:
    assert remap(uncorrected=511).status is Status.PASS
    finding = remap(uncorrected=512)
    assert finding.status is Status.WARN
    assert "512 rows remapped for uncorrectable errors, at most 511" in finding.summary
    assert remap(uncorrected=512, thresholds={"max_uncorrected_rows": 600}).status is Status.PASS


def test_zeros_of_a_gpu_without_ecc_say_nothing() -> None:
    """An RTX 4090 answers with success (gpud): without ECC no error is seen, hence no row remapped."""
    finding = remap(with_ecc={"mode": 0})
    assert (finding.status, finding.summary) == (
        Status.SKIP,
        "ECC is not on, so NVIDIA GeForce RTX 4090 finds no rows to remap",
    )
    assert remap(with_ecc={"mode": 0}, failed=1).status is Status.FAIL


def test_a_gpu_without_ecc_at_all_finds_no_rows_either() -> None:
    records = said("remap", REMAP), ("nvml", Record("ecc", code=3))
    assert ask("nvml.remap", *records, target=GPU).status is Status.SKIP


@pytest.mark.parametrize("wrong", [{"corrected": 1 << 20}, {"pending": 2}, {"failed": 4294967295}])
def test_remapping_that_cannot_be_is_unknown(wrong: dict[str, Any]) -> None:
    finding = remap(**wrong)
    assert finding.status is Status.UNKNOWN
    assert "makes no sense" in finding.summary


def test_sram_is_judged_by_the_devices_own_threshold_alone() -> None:
    """Its count is for life: a number of ours would condemn what NVIDIA still accepts."""
    assert sram(aggregate_uncorrected=3).status is Status.PASS
    finding = sram(aggregate_uncorrected=3, exceeded=1)
    assert (finding.status, finding.data["sram_threshold_exceeded"]) == (Status.FAIL, True)


@pytest.mark.parametrize("wrong", [{"exceeded": 2}, {"aggregate_uncorrected": 1 << 40}])
def test_an_sram_status_that_cannot_be_is_unknown(wrong: dict[str, Any]) -> None:
    assert sram(**wrong).status is Status.UNKNOWN


def test_retired_pages_are_counted_over_both_kinds_of_error() -> None:
    """DCGM: more than 63 pages, whatever retired them."""
    assert pages(single_bit=60, double_bit=3).status is Status.PASS
    finding = pages(single_bit=60, double_bit=4)
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "many")
    assert finding.summary == "64 pages of memory are retired, at most 63 allowed"


def test_a_page_that_waits_to_be_retired_warns() -> None:
    finding = pages(double_bit=1, pending=1)
    assert (finding.status, finding.data["reason"]) == (Status.WARN, "pending")


@pytest.mark.parametrize("wrong", [{"pending": 2}, {"single_bit": 1 << 20}])
def test_retired_pages_that_cannot_be_are_unknown(wrong: dict[str, Any]) -> None:
    assert pages(**wrong).status is Status.UNKNOWN
