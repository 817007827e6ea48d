"""What is asked of NVML, in which order, and what becomes of what it does not have: real worker, fake library."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probe.worker.launch import BUSY_GETTERS
from tests.fakes.build import compiler
from tests.fakes.scenario import UNJUDGED, Scenario, uuid_of

pytestmark = pytest.mark.cc

PROGRAM = """
import json, os, sys
from probe.worker import nvml
from probe.worker.child import Child
for name in sys.argv[2:]: vars(nvml.pynvml).pop(name, None)
child = Child(1)
asked = json.loads(sys.argv[1])
nvml.main(child, {"getters": asked or list(nvml.GETTERS)})
os._exit(0)
"""
GPU = f"gpu:{uuid_of(0)}"
Asking = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None and not os.environ.get("CI"):
        pytest.skip("no C compiler")
    return tmp_path_factory.mktemp("fakes")


@pytest.fixture
def asked(tmp_path: Path, cache: Path) -> Asking:
    """The records of one GPU's host, whose scenario says more; `without` is what the installed pynvml lacks."""

    def ask(toml: str = "", *getters: str, without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        file = folder / "host.toml"
        file.write_text(f"host = {{ gpus = 1 }}\n{toml}{UNJUDGED}")
        env = {**os.environ, **Scenario.load(file).install(folder, cache)}
        argv = [sys.executable, "-c", PROGRAM, json.dumps(getters), *without]
        ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr == ""
        return [json.loads(line) for line in ran.stdout.splitlines()]

    return ask


def answers(records: list[dict[str, Any]], target: str = GPU) -> dict[str, Any]:
    """Of each question about `target`: the data, or NVML's code where it gave one."""
    mine = [one for one in records if one["target"] == target and one["key"] != "step"]
    return {one["key"]: one["code"] or one["data"] for one in mine}


def test_a_healthy_h100_answers_every_question(asked: Asking) -> None:
    """The figures of facts/nvml-h100.json, by way of the fake library."""
    found = answers(asked())
    assert found["recovery"] == {"action": 0}
    assert found["ecc"]["volatile_uncorrected"] == 0
    assert found["remap"] == {"corrected": 0, "uncorrected": 0, "pending": 0, "failed": 0}
    assert found["sram"] == {"exceeded": 0, "volatile_uncorrected": 0, "aggregate_uncorrected": 0}
    assert found["fabric"] == {"state": 3, "status": 0, "health_mask": 0x1AA, "health_summary": 1}
    assert found["throttle"] == {"reasons": 1}
    assert found["pcie"] == {"width": 16, "max_width": 16, "generation": 5, "max_generation": 5}
    assert found["nvlink"] == {"links": 18, "inactive": [], "mbps": 26562, "version": 6}
    assert found["mig"] == {"current": 0, "pending": 0}
    assert found["persistence"] == {"mode": 1}
    assert found["pages"] == 3
    margins = {key: value for key, value in found["temperature"].items() if "margin" in key}
    assert margins == {"margin": 46, "shutdown_margin": -8, "slowdown_margin": -2, "gpu_max_margin": 0}
    assert found["temperature"]["memory"] is None


def test_what_rungs_3_and_4_wait_for_is_asked_first(asked: Asking) -> None:
    """Whether the GPU is busy: they cannot begin before."""
    keys = list(answers(asked()))
    assert set(keys[: len(BUSY_GETTERS)]) == set(BUSY_GETTERS)


def test_a_mig_instance_is_asked_only_who_uses_it(asked: Asking) -> None:
    """Health is the whole GPU's; seven instances would ask everything eight times."""
    records = asked("gpu.0.mig.instances = 2")
    for instance in (0, 1):
        assert set(answers(records, f"gpu:{uuid_of(0, instance)}")) == set(BUSY_GETTERS)
    assert answers(records)["mig"] == {"current": 1, "pending": 1}


@pytest.mark.parametrize("code", [2, 13])
def test_a_field_that_the_driver_does_not_know_is_a_missing_function(asked: Asking, code: int) -> None:
    """Before driver 570 field 230 is an invalid argument: that must not look like a fault of the GPU."""
    assert answers(asked(f"gpu.0.nvml.field.230 = {code}", "recovery")) == {"recovery": 13}


def test_a_lost_gpus_code_is_the_records_own(asked: Asking) -> None:
    assert answers(asked("gpu.0.nvml.field.230 = 15", "recovery")) == {"recovery": 15}
    assert answers(asked("gpu.0.nvml.fields = 15", "recovery", "temperature")) == {"recovery": 15, "temperature": 15}
    assert answers(asked("gpu.0.nvml = { nvlink = 15, fabric = 15 }", "nvlink", "fabric")) == {
        "nvlink": 15,
        "fabric": 15,
    }


def test_the_fabric_is_asked_by_the_newest_call_that_both_sides_know(asked: Asking) -> None:
    """Version 3 has a summary, version 2 a mask, the first neither."""
    toml = "[gpu.0]\nfabric = { state = 2, status = 7, version = 2 }"
    second = answers(asked(toml, "fabric"))["fabric"]
    first = answers(asked(f"nvml.missing = ['nvmlDeviceGetGpuFabricInfoV']\n{toml}", "fabric"))["fabric"]
    assert second == {"state": 2, "status": 7, "health_mask": 0x1AA, "health_summary": None}
    assert first == {"state": 2, "status": 7, "health_mask": None, "health_summary": None}


def test_throttle_reasons_have_an_older_name(asked: Asking) -> None:
    missing = "nvml.missing = ['nvmlDeviceGetCurrentClocksEventReasons']"
    assert answers(asked(missing, "throttle")) == {"throttle": {"reasons": 1}}


def test_a_temperature_has_what_thresholds_there_are(asked: Asking) -> None:
    """An older pynvml has no margin, an older GPU no fields: None, and the others stand."""
    toml = "[gpu.0.nvml.field]\n193 = 3\n194 = 3\n195 = 3\n196 = 3"
    found = answers(asked(toml, "temperature", without=("nvmlDeviceGetMarginTemperature",)))["temperature"]
    assert (found["gpu"], found["slowdown"], found["gpu_max"]) == (41, 89, 87)
    assert (found["margin"], found["slowdown_margin"]) == (None, None)


def test_a_gpu_without_nvlink_has_no_links(asked: Asking) -> None:
    assert answers(asked("gpu.0.nvlinks = 0", "nvlink")) == {
        "nvlink": {"links": 0, "inactive": [], "mbps": None, "version": None}
    }
    assert answers(asked("gpu.0.nvlink.4 = 0", "nvlink")) == {
        "nvlink": {"links": 18, "inactive": [4], "mbps": 26562, "version": 6}
    }


def test_ecc_that_is_off_counts_nothing(asked: Asking) -> None:
    toml = "[gpu.0]\necc = { mode = 0, pending = 1 }"
    assert answers(asked(toml, "ecc")) == {"ecc": {"mode": 0, "pending": 1}}


def test_retired_pages_are_counted_by_cause(asked: Asking) -> None:
    toml = "[gpu.0]\nretired = { single_bit = 3, double_bit = 1, pending = 1 }\n[gpu.0.nvml]\nretired_pages = 0"
    assert answers(asked(toml, "pages")) == {"pages": {"single_bit": 3, "double_bit": 1, "pending": 1}}
