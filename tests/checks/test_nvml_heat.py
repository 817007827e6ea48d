"""Clocks and temperatures, with the figures of a real H100 and A100 and one thing wrong at a time."""

from typing import Any

import pytest

from probe.model import Finding, Record, Status
from tests.checks.asking import GPU, ask

H100 = {
    "gpu": 41,
    "memory": 45,
    "shutdown": None,
    "slowdown": None,
    "gpu_max": None,
    "memory_max": None,
    "margin": 46,
    "shutdown_margin": -8,
    "slowdown_margin": -2,
    "gpu_max_margin": 0,
}
A100 = {
    "gpu": 31,
    "memory": 30,
    "shutdown": 92,
    "slowdown": 89,
    "gpu_max": 85,
    "memory_max": 95,
    "margin": None,
    "shutdown_margin": None,
    "slowdown_margin": None,
    "gpu_max_margin": None,
}


def throttle(reasons: int, **thresholds: int) -> Finding:
    record = ("nvml", Record("throttle", code=0, data={"reasons": reasons}))
    return ask("nvml.throttle", record, target=GPU, thresholds=thresholds)


def temperature(recorded: dict[str, Any], *, thresholds: dict[str, int] | None = None, **wrong: Any) -> Finding:
    record = ("nvml", Record("temperature", code=0, data={**recorded, **wrong}))
    return ask("nvml.temperature", record, target=GPU, thresholds=thresholds)


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0, "nothing"),
        (0x1, "idle"),
        (0x2, "application clocks"),
        (0x4, "power cap"),
        (0x14, "power cap, sync boost"),
        (0x100, "display clocks"),
        (0x200, "reason 0x200"),
    ],
)
def test_reasons_that_are_how_a_gpu_is_meant_to_run_pass(reasons: int, words: str) -> None:
    """Every one that is not in the mask 0xE8."""
    finding = throttle(reasons)
    assert (finding.status, finding.summary) == (Status.PASS, f"clocks are held by {words} (reasons {reasons:#x})")


@pytest.mark.parametrize(
    ("reasons", "reason"), [(0x8, "hardware"), (0x20, "thermal"), (0x48, "thermal"), (0x88, "power_brake")]
)
def test_heat_and_power_supply_fail(reasons: int, reason: str) -> None:
    """0x8 is set with every hardware reason: the more specific one is named."""
    finding = throttle(reasons | 0x4)
    assert (finding.status, finding.data["reason"], finding.data["throttle_reasons"]) == (
        Status.FAIL,
        reason,
        reasons | 0x4,
    )


def test_which_reasons_are_bad_can_be_set() -> None:
    assert throttle(0x8, bad_reasons_mask=0xE0).status is Status.PASS
    finding = throttle(0x4, bad_reasons_mask=0x4)
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "other")


def test_reasons_that_cannot_be_are_unknown() -> None:
    assert throttle((1 << 64) - 1).status is Status.UNKNOWN


def test_a_cool_gpu_says_when_it_would_slow_down() -> None:
    """From Hopper on by its margin, before that by an absolute threshold."""
    hopper, ampere = temperature(H100), temperature(A100)
    assert (hopper.status, hopper.summary) == (Status.PASS, "the GPU has 41 °C, it slows down at 89 °C")
    assert (ampere.status, ampere.summary) == (Status.PASS, "the GPU has 31 °C, it slows down at 89 °C")
    assert hopper.data["slowdown_margin_celsius"] == -2
    assert "slowdown_celsius" not in hopper.data


@pytest.mark.parametrize(("recorded", "wrong"), [(A100, {"gpu": 90}), (H100, {"gpu": 90, "margin": -3})])
def test_beyond_its_slowdown_threshold_a_gpu_fails(recorded: dict[str, Any], wrong: dict[str, Any]) -> None:
    finding = temperature(recorded, **wrong)
    assert (finding.status, finding.data["reason"]) == (Status.FAIL, "slowdown")
    assert finding.summary == "the GPU has 90 °C, it slows down at 89 °C"


@pytest.mark.parametrize(("recorded", "wrong"), [(A100, {"gpu": 86}), (H100, {"gpu": 88, "margin": -1})])
def test_beyond_its_operating_range_a_gpu_warns(recorded: dict[str, Any], wrong: dict[str, Any]) -> None:
    finding = temperature(recorded, **wrong)
    assert (finding.status, finding.data["reason"]) == (Status.WARN, "gpu_max")


@pytest.mark.parametrize(("recorded", "wrong"), [(A100, {"gpu": 85}), (H100, {"gpu": 87, "margin": 0})])
def test_at_its_operating_limit_a_gpu_is_well(recorded: dict[str, Any], wrong: dict[str, Any]) -> None:
    assert temperature(recorded, **wrong).status is Status.PASS


def test_hot_memory_warns() -> None:
    finding = temperature(A100, memory=96)
    assert (finding.status, finding.data["reason"]) == (Status.WARN, "memory_max")
    assert finding.summary == "the GPU's memory has 96 °C, at most 95 °C is its operating range"


def test_the_room_that_is_asked_for_can_be_set() -> None:
    assert temperature(A100, thresholds={"min_room_celsius": 58}).status is Status.PASS
    assert temperature(A100, thresholds={"min_room_celsius": 59}).status is Status.FAIL


@pytest.mark.parametrize("margin", [0, -5, 500, -2147483648])
def test_a_margin_that_contradicts_the_temperature_is_not_believed(margin: int) -> None:
    """A healthy H100 said 0, then -5 (gpud#1208): at 41 degrees no GPU slows down."""
    finding = temperature(H100, margin=margin)
    assert finding.status is Status.PASS
    assert "at most 93 °C, since it tells no threshold" in finding.summary


@pytest.mark.parametrize("threshold", [0, 255, 4294967295, None])
def test_a_threshold_that_cannot_be_counts_as_none(threshold: int | None) -> None:
    """A healthy reading above a threshold of 0 is no heat."""
    assert temperature(A100, slowdown=threshold, gpu_max=threshold).status is Status.PASS
    assert temperature(A100, slowdown=threshold, gpu_max=threshold, gpu=94).status is Status.FAIL


@pytest.mark.parametrize("degrees", [-51, 201, 255, 4294967295])
def test_a_temperature_that_cannot_be_is_unknown(degrees: int) -> None:
    finding = temperature(A100, gpu=degrees)
    assert finding.status is Status.UNKNOWN
    assert "makes no sense" in finding.summary
