"""docker/kubernetes/gate.yaml, run: its very commands, in namespaces as pods, with real sshds and a real torchrun."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.system import pods
from tests.system.lab import LEFT_S, Lab, needed, wait_for

pytestmark = pytest.mark.system

MANIFEST = Path(__file__).parents[2] / "docker" / "kubernetes" / "gate.yaml"
HERE = {"NODES": "3", "GPUS": "1", "WAIT_S": "60"}
"""What a user changes in the manifest; without a GPU one rank on each pod."""
TRAINED = "has trained with"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Hosts without an sshd: the pods bring their own."""
    needed()
    lab = Lab(tmp_path, hosts=3)
    try:
        lab.wire()
        yield lab
        wait_for(lambda: not lab.left(), LEFT_S, f"left: {lab.left()}")
    finally:
        lab.remove()


def job() -> dict[str, Any]:
    (found,) = [one for one in yaml.safe_load_all(MANIFEST.read_text()) if one["kind"] == "Job"]
    return dict(found)


def codes(found: list[pods.Pod]) -> list[list[tuple[str, int]]]:
    return [[(ended.container, ended.code) for ended in pod.ended] for pod in found]


def test_pods_that_can_work_together_train(lab: Lab, tmp_path: Path) -> None:
    """As the manifest's user, without capabilities. All containers end by themselves, and their sshd with them."""
    user = job()["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    found = pods.run(lab, job(), tmp_path, user=user, env=HERE, of_pods={})
    assert codes(found) == [[("gate", 0), ("train", 0)]] * 3, [pod.ended for pod in found]
    # torchrun may say more, of a rendezvous whose host has left already
    said = [line for pod in found for line in pod.ended[1].output.splitlines() if TRAINED in line]
    assert sorted(said) == [f"rank {rank} {TRAINED} 3" for rank in range(3)]
    assert found[0].ended[0].output.startswith("ready: 3 hosts")


def test_a_pod_that_is_told_to_go_stays_until_that_is_answered(lab: Lab, tmp_path: Path) -> None:
    """The pod may look for "go" between the touch and the end of the ssh that did it: here it always does."""
    held = tmp_path / "held"
    held.mkdir()
    touch = held / "touch"
    touch.write_text('#!/bin/sh\n/usr/bin/touch "$@"\nsleep 2.5\n')
    touch.chmod(0o755)
    path = f"{held}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    found = pods.run(lab, job(), tmp_path, user=0, env=HERE, of_pods={1: {"PATH": path}})
    assert codes(found) == [[("gate", 0), ("train", 0)]] * 3, [pod.ended for pod in found]


def test_a_pod_whose_ranks_die_ends_the_job_by_name_before_anybody_trains(lab: Lab, tmp_path: Path) -> None:
    """As root, with whom sshd is stricter. The fault comes by the pod's environment, which agents there must have."""
    fault = {"PYTHONPATH": pods.PLACE, "LAB_FAULT": "kill", "LAB_FROM": "2"}
    found = pods.run(lab, job(), tmp_path, user=0, env=HERE, of_pods={1: fault})
    assert codes(found) == [[("gate", 1)], [("gate", 143)], [("gate", 143)]], [pod.ended for pod in found]
    said = found[0].ended[0].output
    assert said.startswith("ready_without: 2 of 3 hosts can work together, not train-1.train"), said
    assert "RANK_KILLED" in said
    assert TRAINED not in "".join(ended.output for pod in found for ended in pod.ended)
