"""One bad GPU of several: its child hangs, crashes or computes one wrong bit, and no other GPU is blamed.

The fault is planted in torch by a test-only program (tests/system/faulty); everything else is real.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from probe.rank.facts import visible_gpus
from tests.gpu.test_gpu import by_target, probe, uuids, wait_until_idle
from tests.system.lab import FAULTY

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(len(visible_gpus()) < 2, reason="needs two GPUs")]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("hang", "timeout", "TORCH_TENSOR_HANGS"),
        ("crash", "fail", "TORCH_CRASHED_SIGSEGV"),
        ("wrong", "fail", "TORCH_WRONG_RESULT"),
    ],
)
def test_one_bad_gpu_is_named_and_the_others_pass(
    state: Path, monkeypatch: pytest.MonkeyPatch, fault: str, status: str, code: str
) -> None:
    wait_until_idle()
    *others, last = uuids()
    monkeypatch.setenv("PYTHONPATH", f"{FAULTY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))
    monkeypatch.setenv("LAB_PRODUCT", fault)
    monkeypatch.setenv("LAB_GPU", last)
    report = probe(state, "--budget", "9s")
    tensors = by_target(report, "torch.tensor")
    print(report["elapsed_s"], report["causes"], tensors[f"gpu:{last}"]["summary"])
    assert ("unhealthy", status) == (report["verdict"], tensors[f"gpu:{last}"]["status"])
    assert {"pass"} == {tensors[f"gpu:{uuid}"]["status"] for uuid in others}
    assert [code] == [cause["code"] for cause in report["causes"]]
    assert {f"gpu:{last}"} == {named["target"] for cause in report["causes"] for named in cause["checks"]}
    assert report["elapsed_s"] < report["budget_s"]


def test_the_verdict_says_what_was_tested_and_what_was_left_alone(state: Path) -> None:
    """A job on the first GPU; the words for people name both."""
    from tests.gpu.test_gpu import WORK, job

    wait_until_idle()
    with job(WORK):
        report: dict[str, Any] = probe(state)
    statuses = [check["status"] for check in by_target(report, "torch.tensor").values()]
    assert sorted(statuses) == ["pass"] * (len(uuids()) - 1) + ["skip"]
    assert any("busy" in note for note in report["notes"]), report["notes"]
