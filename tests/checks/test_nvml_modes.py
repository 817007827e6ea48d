"""Recovery action, persistence, compute mode and MIG mode, with recorded values."""

from typing import Any

import pytest

from probe.model import Finding, Record, Status
from tests.checks.asking import GPU, ask


def one(check: str, getter: str, **data: Any) -> Finding:
    return ask(check, ("nvml", Record(getter, code=0, data=data)), target=GPU)


def test_a_driver_that_asks_for_nothing_passes() -> None:
    finding = one("nvml.recovery", "recovery", action=0)
    assert (finding.status, finding.data) == (Status.PASS, {"recovery_action": 0})


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (1, "reset the GPU"),
        (2, "reboot the node"),
        (3, "drain peer-to-peer traffic"),
        (4, "drain the GPU, then reset it"),
        (5, "recover the IMEX domain"),
        (6, "reset the GPU's PCIe bus"),
        (7, "reboot the whole system"),
    ],
)
def test_every_action_fails_in_its_own_words(action: int, words: str) -> None:
    finding = one("nvml.recovery", "recovery", action=action)
    assert (finding.status, finding.data["recovery_action"]) == (Status.FAIL, action)
    assert finding.summary == f"the driver asks to {words} (recovery action {action}, not 0)"


@pytest.mark.parametrize("action", [8, 255, 4294967295, -1])
def test_an_action_of_a_newer_driver_is_unknown(action: int) -> None:
    """It is no pass, and what it asks for nobody here can say."""
    finding = one("nvml.recovery", "recovery", action=action)
    assert (finding.status, finding.data["recovery_action"]) == (Status.UNKNOWN, action)


@pytest.mark.parametrize(("mode", "status"), [(1, Status.PASS), (0, Status.WARN), (2, Status.UNKNOWN)])
def test_persistence_that_is_off_warns(mode: int, status: Status) -> None:
    finding = one("nvml.persistence", "persistence", mode=mode)
    assert (finding.status, finding.data["persistence_mode"]) == (status, mode)


@pytest.mark.parametrize(
    ("mode", "status"),
    [(0, Status.PASS), (1, Status.PASS), (2, Status.WARN), (3, Status.PASS), (4, Status.UNKNOWN)],
)
def test_only_a_prohibited_gpu_warns(mode: int, status: Status) -> None:
    """Exclusive is somebody's choice, and no fault."""
    finding = one("nvml.mode", "compute_mode", mode=mode)
    assert (finding.status, finding.data["compute_mode"]) == (status, mode)


@pytest.mark.parametrize(
    ("current", "pending", "status", "words"),
    [
        (0, 0, Status.PASS, "MIG is off"),
        (1, 1, Status.PASS, "MIG is on"),
        (0, 1, Status.WARN, "MIG is off, and on after the next GPU reset"),
        (1, 0, Status.WARN, "MIG is on, and off after the next GPU reset"),
        (2, 0, Status.UNKNOWN, "NVML's MIG mode makes no sense: 2, pending 0"),
    ],
)
def test_a_mig_mode_that_waits_for_a_reset_warns(current: int, pending: int, status: Status, words: str) -> None:
    finding = one("nvml.mig", "mig", current=current, pending=pending)
    assert (finding.status, finding.summary) == (status, words)
