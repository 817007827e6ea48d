"""Every question to NVML on real GPUs: answered, quickly, and no healthy GPU is blamed (``pytest -s`` prints all).

Meant for an H100 and an H200 beside no job; on any other healthy GPU the same must hold.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probe.worker.nvml import GETTERS

pytestmark = pytest.mark.gpu

PROGRAM = """
import json, os, sys
from probe.worker import nvml
from probe.worker.child import Child
nvml.main(Child(1), {"getters": list(nvml.GETTERS)})
os._exit(0)
"""
ALL_OF_IT_S = 0.3
"""For one GPU: the same calls took 17 ms on an H100 (facts/nvml-h100.json); others wait for the driver's locks."""


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    argv = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def answers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in records if one["key"] in GETTERS]


def test_every_getter_answers_or_says_that_it_is_not_supported(records: list[dict[str, Any]]) -> None:
    """0 or 3, or 13 with an older driver; and each has its say."""
    for one in answers(records):
        print(f"{one['target'][:16]} {one['key']:13} {one['elapsed_s'] * 1000:6.2f} ms  {one['code'] or one['data']}")
    assert {one["key"] for one in answers(records)} == set(GETTERS)
    assert {one["code"] for one in answers(records)} <= {0, 3, 13}


def test_all_questions_to_one_gpu_take_little_time(records: list[dict[str, Any]]) -> None:
    by_gpu: dict[str, float] = {}
    for one in answers(records):
        by_gpu[one["target"]] = by_gpu.get(one["target"], 0.0) + one["elapsed_s"]
    print({gpu[:16]: f"{seconds * 1000:.1f} ms" for gpu, seconds in by_gpu.items()})
    assert max(by_gpu.values()) < ALL_OF_IT_S


def test_no_check_of_nvml_finds_fault_with_a_healthy_gpu(state: Path) -> None:
    """In the node profile, where most is asked."""
    argv = [sys.executable, "-m", "probe", "check", "--format", "json", "--state", str(state), "--only", "nvml"]
    ran = subprocess.run([*argv, "--profile", "node"], capture_output=True, text=True, timeout=90, check=False)
    checks = json.loads(ran.stdout)["checks"]
    for one in checks:
        print(f"{one['id']:17} {one['target'][:16]:16} {one['status']:7} {one['summary']}")
    wrong = [one for one in checks if one["status"] not in ("pass", "skip")]
    assert [] == wrong
