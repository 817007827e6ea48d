"""``torch_every``: a pass of rung 4 stands for a while, on this machine as it is, until anything else fails."""

from pathlib import Path

import pytest

from tests.system.command import Command, Ran, fake_torch

EVERY = ("--torch-every", "10m", "--device", "cpu")


def torch_checks(ran: Ran) -> dict[str, str]:
    """How rung 4 ended, by check; a skip by its words."""
    found = {item["id"]: item for item in ran.report["checks"] if item["id"].startswith("torch.")}
    return {name: item["summary"] if item["status"] == "skip" else item["status"] for name, item in found.items()}


def computed(ran: Ran) -> bool:
    return torch_checks(ran)["torch.tensor"] == "pass"


@pytest.fixture
def passed(probe: Command) -> Command:
    """One run has passed as a whole."""
    ran = probe.check(*EVERY)
    assert (ran.code, computed(ran)) == (0, True), ran
    return probe


def test_a_pass_stands(passed: Command) -> None:
    """The next run imports no torch, says so for each check and in its first line, and is healthy."""
    ran = passed.check(*EVERY)
    assert ran.code == 0
    said = {words.partition(" ")[0] for name, words in torch_checks(ran).items() if name != "torch.arch"}
    assert said == {"passed"}
    text = passed.text(*EVERY)
    assert "torch passed" in text.first_line
    assert "computed" not in text.first_line


def test_it_is_off_by_default(passed: Command) -> None:
    assert computed(passed.check("--device", "cpu"))


def test_what_is_asked_for_by_name_is_run(passed: Command) -> None:
    assert passed.check(*EVERY, "--only", "torch.tensor").status("torch.tensor") == "pass"


def test_a_check_that_must_pass_has_passed(passed: Command) -> None:
    """ENABLE_TENSOR_CHECK=true makes a skip a failure, but not one whose pass is on record."""
    assert passed.check(*EVERY, env={"ENABLE_TENSOR_CHECK": "true"}).code == 0


def test_another_choice_of_gpus_is_another_machine(passed: Command) -> None:
    assert computed(passed.check(*EVERY, env={"NVIDIA_VISIBLE_DEVICES": "none"}))


def test_another_torch_is_another_machine(passed: Command, tmp_path: Path) -> None:
    """An image whose torch was replaced is tested at once, and here found broken."""
    path = fake_torch(tmp_path, "raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    assert passed.check(*EVERY, env={"PYTHONPATH": path}).status("torch.import") == "fail"


def test_any_other_failing_rung_voids_it(passed: Command) -> None:
    """After a run in which something critical failed, the next computes again, and its pass then stands."""
    ran = passed.check(*EVERY, env={"ENABLE_SMI_CHECK": "true"})
    assert (ran.code, ran.status("device.smi"), computed(ran)) == (1, "fail", False)
    assert computed(passed.check(*EVERY))
    assert not computed(passed.check(*EVERY))
