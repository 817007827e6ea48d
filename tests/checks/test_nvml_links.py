"""PCIe, NVLink and its fabric, with the figures of a real H100 and one thing wrong at a time."""

from typing import Any

import pytest

from probe.model import Finding, Record, Status
from tests.checks.asking import GPU, ask

PCIE = {"width": 16, "max_width": 16, "generation": 5, "max_generation": 5}
NVLINK = {"links": 18, "inactive": [], "mbps": 26562, "version": 6}
FABRIC = {"state": 3, "status": 0, "health_mask": 0x1AA, "health_summary": 1}
MIG_ON = ("nvml", Record("mig", code=0, data={"current": 1, "pending": 1}))
H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def said(getter: str, data: dict[str, Any], **wrong: Any) -> tuple[str, Record]:
    return ("nvml", Record(getter, code=0, data={**data, **wrong}))


def pcie(percent: int = 0, thresholds: dict[str, int] | None = None, **wrong: Any) -> Finding:
    records = said("pcie", PCIE, **wrong), said("utilization", {"percent": percent})
    return ask("nvml.pcie", *records, target=GPU, thresholds=thresholds)


def nvlink(*products: str, mig: bool = False, thresholds: dict[str, int] | None = None, **wrong: Any) -> Finding:
    records = [said("nvlink", NVLINK, **wrong), *([MIG_ON] if mig else [])]
    return ask("nvml.nvlink", *records, target=GPU, products=products or (H100,), thresholds=thresholds)


def fabric(links: dict[str, Any] | None = None, **wrong: Any) -> Finding:
    records = said("fabric", FABRIC, **wrong), said("nvlink", links or NVLINK)
    return ask("nvml.fabric", *records, target=GPU, products=(H100,))


def test_a_full_pcie_link_passes() -> None:
    finding = pcie()
    assert (finding.status, finding.summary) == (Status.PASS, "PCIe 5 x16 of 5 x16")


def test_lost_lanes_fail_also_at_idle() -> None:
    """The maximum is what device and slot together can do, by NVML."""
    finding = pcie(width=4)
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "narrow")
    assert finding.summary == "the PCIe link runs with 4 of 16 lanes"


def test_a_slot_with_fewer_lanes_is_no_fault() -> None:
    assert pcie(width=8, max_width=8).status is Status.PASS


def test_the_allowed_number_of_missing_lanes_can_be_set() -> None:
    assert pcie(width=8, thresholds={"max_missing_lanes": 8}).status is Status.PASS


def test_an_idle_gpu_may_lower_its_generation() -> None:
    """It saves power: reported, not judged."""
    finding = pcie(generation=1)
    assert (finding.status, finding.data["pcie_generation"]) == (Status.PASS, 1)
    assert "of an idle GPU" in finding.summary


def test_a_gpu_at_work_runs_its_link_at_full_speed() -> None:
    assert pcie(percent=49, generation=1).status is Status.PASS
    finding = pcie(percent=50, generation=1)
    assert (finding.status, finding.data["reason"]) == (Status.WARN, "slow")
    assert finding.summary == "the PCIe link runs at generation 1 of 5 while the GPU is 50 % busy"


def test_where_the_load_is_not_known_the_generation_is_not_judged() -> None:
    """With MIG on NVML has no utilisation."""
    records = said("pcie", PCIE, generation=1), ("nvml", Record("utilization", code=3))
    assert ask("nvml.pcie", *records, target=GPU).status is Status.PASS


@pytest.mark.parametrize("wrong", [{"width": 3}, {"width": 32}, {"generation": 0}, {"max_generation": 4294967295}])
def test_a_pcie_link_that_cannot_be_is_unknown(wrong: dict[str, Any]) -> None:
    finding = pcie(**wrong)
    assert finding.status is Status.UNKNOWN
    assert "makes no sense" in finding.summary


def test_a_gpu_that_tells_of_no_link_is_skipped() -> None:
    """Some virtual machines show no PCIe capability at all."""
    assert pcie(width=0, max_width=0).status is Status.SKIP


def test_all_nvlinks_up_pass() -> None:
    finding = nvlink()
    assert (finding.status, finding.summary) == (Status.PASS, "18 of 18 NVLinks are up")


def test_how_fast_the_nvlinks_are_is_kept() -> None:
    """For the gate, which sets what was measured beside it."""
    assert (6, 26562) == tuple(nvlink().data[key] for key in ("nvlink_version", "nvlink_mbps"))


def test_a_nvlink_that_is_down_fails_and_is_named() -> None:
    finding = nvlink(inactive=[3, 17])
    assert (finding.status, finding.data["nvlinks_down"]) == (Status.FAIL, "3, 17")
    assert finding.summary == "2 of 18 NVLinks are down (3, 17), at most 0 allowed"
    assert nvlink(inactive=[3], thresholds={"max_inactive_links": 1}).status is Status.PASS


def test_a_gpu_without_nvlink_is_skipped_by_name() -> None:
    finding = nvlink("NVIDIA L4", links=0)
    assert (finding.status, finding.summary) == (Status.SKIP, "NVIDIA L4 has no NVLink")


def test_a_board_without_a_bridge_is_no_fault() -> None:
    """A PCIe board's links are all down (NVSentinel#1481), and so are those of a VM with one GPU."""
    twelve: dict[str, Any] = {"links": 12, "inactive": list(range(12))}
    assert nvlink("NVIDIA A100-PCIE-40GB", "NVIDIA A100-PCIE-40GB", **twelve).status is Status.SKIP
    assert nvlink(A100, **twelve).status is Status.SKIP


def test_an_sxm_board_beside_others_with_no_link_up_warns() -> None:
    """Before Hopper no fabric state tells of it."""
    finding = nvlink(A100, A100, links=12, inactive=list(range(12)))
    assert (finding.status, finding.data["reason"]) == (Status.WARN, "none_up")


def test_with_mig_on_nvlink_is_not_used() -> None:
    assert nvlink(mig=True, inactive=[0]).status is Status.SKIP


def test_a_gpu_that_has_joined_its_fabric_passes() -> None:
    finding = fabric()
    assert finding.status is Status.PASS
    assert finding.data["fabric_health_mask"] == 0x1AA


def test_a_gpu_without_fabric_is_skipped_by_name() -> None:
    """State 0: a PCIe board, or a GPU before Hopper."""
    finding = fabric(state=0, health_mask=0, health_summary=0)
    assert (finding.status, finding.summary) == (Status.SKIP, f"{H100} has no NVLink fabric (state 0)")


@pytest.mark.parametrize(("state", "words"), [(1, "has not begun to join"), (2, "is still joining")])
def test_a_gpu_that_has_not_joined_yet_fails(state: int, words: str) -> None:
    """CUDA says 802 meanwhile. The status counts only once it has joined."""
    finding = fabric(state=state, status=999)
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "not_joined")
    assert words in finding.summary


def test_without_an_active_link_there_is_no_fabric_to_join() -> None:
    """A virtual machine with one GPU of eight."""
    assert fabric(links={"links": 18, "inactive": list(range(18))}, state=1).status is Status.SKIP
    assert fabric(links={"links": 18, "inactive": list(range(18))}, state=2).status is Status.FAIL


def test_a_failed_registration_fails_with_its_status() -> None:
    finding = fabric(status=999)
    assert (finding.status, finding.data["fabric_status"]) == (Status.FAIL, 999)


@pytest.mark.parametrize(
    ("mask", "summary", "words"),
    [
        (0x19A, 2, "its route is unhealthy"),
        (0x4AA, 2, "no partition"),
        (0x5AA, 2, "insufficient NVLinks"),
        (0xFAA, 2, "wrong configuration 15"),
        (0x1AA, 2, "so its summary says"),
    ],
)
def test_a_fabric_that_does_not_carry_traffic_fails(mask: int, summary: int, words: str) -> None:
    finding = fabric(health_mask=mask, health_summary=summary)
    assert finding.status is Status.FAIL
    assert words in finding.summary


@pytest.mark.parametrize(
    ("mask", "summary", "words"),
    [
        (0x1A9, 3, "its bandwidth"),
        (0x1A6, 3, "routes are being recovered"),
        (0x16A, 3, "an access timeout is being recovered"),
        (0x1AA, 3, "limited capacity"),
    ],
)
def test_a_fabric_that_is_slower_warns(mask: int, summary: int, words: str) -> None:
    finding = fabric(health_mask=mask, health_summary=summary)
    assert finding.status is Status.WARN
    assert words in finding.summary


def test_health_that_this_driver_does_not_know_is_not_judged() -> None:
    """The first form of the call has no mask, the second no summary; all zero: no field is supported."""
    assert fabric(health_mask=None, health_summary=None).status is Status.PASS
    assert fabric(health_summary=None).status is Status.PASS
    assert fabric(health_mask=0, health_summary=0).status is Status.PASS


def test_a_fabric_state_that_cannot_be_is_unknown() -> None:
    assert fabric(state=7).status is Status.UNKNOWN
