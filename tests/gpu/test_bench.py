"""`probe bench` on real GPUs: verified figures below their limits, a busy GPU refused, Ctrl-C in the middle.

Across hosts: this machine as two of them, which share its GPUs (NCCL over sockets); with one GPU neither has any, and
gloo it is. What was measured is printed (``pytest -s``).
"""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from probe.rank.facts import visible_gpus
from tests.gpu.test_gpu import WORK, job, uuids, wait_until_idle

pytestmark = pytest.mark.gpu


def argv(state: Path, path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "probe", "bench", "--state", str(state), "--json", str(path), *arguments]


def bench(state: Path, path: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    wait_until_idle()
    done = subprocess.run(argv(state, path, *arguments), capture_output=True, text=True, timeout=150, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One default run."""
    folder = tmp_path_factory.mktemp("bench")
    return bench(folder / "state", folder / "a.json", "--html", str(folder / "a.html"))


def test_a_default_run_does_all_that_this_host_can(whole: dict[str, Any]) -> None:
    status = {one["program"]: one["status"] for one in whole["programs"]}
    together = "done" if len(uuids()) > 1 else "skip"
    alone = ("startup", "checks", "matmul", "memory", "host")
    assert status == {**dict.fromkeys(alone, "done"), "peer": together, "collective": together}
    assert whole["elapsed_s"] <= 90


def test_every_figure_is_verified_and_below_its_limit(whole: dict[str, Any]) -> None:
    wrong = [one["case"] for one in whole["results"] if one["verified"] is False]
    over = [one["case"] for one in whole["results"] if one["limit"] and one["median"] > 1.02 * one["limit"]]
    assert wrong == []
    assert over == []


def test_the_limits_are_known_on_this_hardware(whole: dict[str, Any]) -> None:
    unknown = {
        one["limit_source"]
        for one in whole["results"]
        if one["program"] in ("matmul", "memory", "host") and not one["limit"]
    }
    assert unknown == set()


def test_clocks_and_throttle_reasons_are_kept(whole: dict[str, Any]) -> None:
    matmul = next(one for one in whole["programs"] if one["program"] == "matmul")
    for condition in matmul["conditions"]:
        assert condition["sm_mhz_during"]
        assert condition["throttle_reasons_during"] is not None
        assert condition["celsius_after"]


def test_a_busy_gpu_is_refused_and_the_job_goes_on(tmp_path: Path) -> None:
    with job(WORK) as running:
        done = subprocess.run(
            argv(tmp_path / "state", tmp_path / "a.json"), capture_output=True, text=True, timeout=60, check=False
        )
        assert running.poll() is None
    assert done.returncode == 3
    assert "is busy: " in done.stderr
    assert not (tmp_path / "a.json").exists()


def test_a_busy_gpu_is_measured_where_that_is_asked_for(tmp_path: Path) -> None:
    with job(WORK):
        args = ("--busy", "test", "--only", "memory", "--time", "30s")
        path = tmp_path / "a.json"
        done = subprocess.run(
            argv(tmp_path / "state", path, *args), capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_bytes())["results"]


def test_ctrl_c_beside_a_running_kernel_keeps_what_is_done_and_leaves_the_gpu_idle(tmp_path: Path) -> None:
    wait_until_idle()
    path = tmp_path / "a.json"
    words = argv(tmp_path / "state", path, "--only", "memory", "--only", "matmul", "--time", "60s")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
        running.communicate(timeout=10)
    found = json.loads(path.read_bytes())
    assert (running.returncode, found["partial"]) in ((130, True), (0, False))
    assert found["results"]
    wait_until_idle()


# ---- across hosts ----------------------------------------------------------------------------------------------------


def test_this_machine_as_two_hosts_measures_every_collective(tmp_path: Path) -> None:
    """Small ones as CUDA graphs of calls that go over sockets; every word of every result is right."""
    path = tmp_path / "a.json"
    found = bench(tmp_path / "state", path, "--local", "2", "--html", str(tmp_path / "a.html"))
    share = len(visible_gpus()) // 2
    where = found["provenance"]
    assert ("local", "nccl" if share else "gloo") == (where["launcher"], where["backend"])
    assert [max(1, share)] * 2 == [host["ranks"] for host in where["hosts"]]
    assert all(host["gpu"] and host["driver"] and host["nccl"] for host in where["hosts"]) or not share
    assert ("done", "") == (found["programs"][0]["status"], found["programs"][0]["reason"])
    assert {True} == {one["verified"] for one in found["results"]}
    assert {2 * max(1, share)} == {one["data"]["ranks"] for one in found["results"]}
    small = {one["data"]["op"] for one in found["results"] if one["data"]["size_bytes"] <= 1 << 20}
    assert len(small) == 5
    assert {None} == {one["limit"] for one in found["results"]}
    assert found["elapsed_s"] <= 90
    assert "plot-collective" in (tmp_path / "a.html").read_text()
    wait_until_idle()


def test_a_host_whose_gpu_is_busy_is_refused_by_name_and_the_job_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with job(WORK) as running:
        words = argv(tmp_path / "state", path, "--hosts", "localhost", "--time", "60s")
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
        assert running.poll() is None
    assert done.returncode == 3, done.stdout
    reason = json.loads(path.read_bytes())["programs"][0]["reason"]
    assert reason.startswith("localhost: ")
    assert "in use" in reason
    assert "--busy test" in reason


def test_ctrl_c_across_hosts_leaves_the_gpus_idle(tmp_path: Path) -> None:
    wait_until_idle()
    path = tmp_path / "a.json"
    with subprocess.Popen(
        argv(tmp_path / "state", path, "--local", "2", "--time", "90s"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        try:
            running.wait(35)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
        running.communicate(timeout=10)
    found = json.loads(path.read_bytes())
    assert (running.returncode, found["partial"]) in ((130, True), (0, False))
    wait_until_idle()
