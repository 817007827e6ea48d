"""Every host of tests/hosts, and what the whole command says of it. A new file there is a new test."""

import json
from pathlib import Path

import pytest

from probe.report import text
from tests.fakes.scenario import Scenario
from tests.system.command import LATE_S, Command, cpu_build

HOSTS = sorted((Path(__file__).parents[1] / "hosts").glob("*.toml"))
BUDGET_S = 4.0
GPU_FREE = ("--budget", f"{BUDGET_S:g}s", "--skip", "torch")

pytestmark = [pytest.mark.system, pytest.mark.cc]


def scenario(name: str) -> Scenario:
    return Scenario.load(Path(__file__).parents[1] / "hosts" / f"{name}.toml")


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.stem)
def test_a_host_is_judged_as_its_file_expects(probe: Command, fakes: Path, path: Path) -> None:
    """Verdict, exit code, first cause, in time; no healthy GPU is blamed, nor probe; JSON and text fit the callers."""
    played = Scenario.load(path)
    expect = played.expect
    argv = probe.check_argv("--format", "json", *(played.argv or GPU_FREE))
    ran = probe.on(played, argv, fakes)
    report = ran.report
    assert (expect.verdict, expect.exit_code) == (report["verdict"], ran.code)
    assert expect.cause in (None, *ran.codes[:1]), ran.codes
    assert ran.elapsed_s <= report["budget_s"] + LATE_S
    assert ran.err == ""
    wrong = {(item["id"], item["target"]) for item in report["checks"] if item["status"] in ("fail", "timeout")}
    named = {
        reference["target"]
        for cause in report["causes"]
        for reference in cause["checks"]
        if (reference["id"], reference["target"]) in wrong and reference["target"].startswith(("gpu:G", "gpu:M"))
    }
    assert set(expect.blames) == named
    assert set(expect.internal) == {item["id"] for item in report["checks"] if item["data"].get("reason") == "internal"}
    shown = text.render(ran.decoded)
    assert len(shown.partition("\n")[0]) <= 200
    assert len(shown.encode()) <= 4096


@pytest.mark.parametrize("name", ["h100x8", "cuda-context-fails-one", "nvml-18"])
def test_the_default_text_fits_where_callers_cut_it(probe: Command, fakes: Path, name: str) -> None:
    """Docker keeps 4096 bytes; the first line alone is enough to act on; stdout holds nothing else."""
    ran = probe.on(scenario(name), probe.check_argv(*GPU_FREE), fakes)
    assert ran.first_line.startswith(f"{scenario(name).expect.verdict}: ")
    assert len(ran.first_line) <= 200
    assert len(ran.out.encode()) <= 4096
    assert ran.err == ""


def test_a_cpu_build_of_torch_on_a_gpu_host_is_named(probe: Command, fakes: Path) -> None:
    """All rungs below pass, and the cause is the build, not what follows from it."""
    if not cpu_build():
        pytest.skip("the torch of this environment is built for CUDA")
    ran = probe.on(scenario("h100x8"), probe.check_argv("--format", "json"), fakes)
    assert (ran.code, ran.report["verdict"]) == (1, "unhealthy")
    assert ran.codes[0] == "TORCH_CPU_BUILD"
    passed = {item["id"] for item in ran.report["checks"] if item["status"] == "pass"}
    assert {"nvml.count", "cuda.context", "cuda.kernel", "torch.import"} <= passed


def test_only_runs_what_is_asked_and_its_needs_unreported(probe: Command, fakes: Path) -> None:
    """``--only cuda``: no other rung is in the report, and yet which GPUs there are is known."""
    ran = probe.on(scenario("h100x2"), probe.check_argv("--format", "json", "--only", "cuda"), fakes)
    assert ran.code == 0
    assert {item["id"].partition(".")[0] for item in ran.report["checks"]} == {"cuda"}
    kernels = [item for item in ran.report["checks"] if item["id"] == "cuda.kernel"]
    assert [item["status"] for item in kernels] == ["pass", "pass"]


def test_skip_takes_out_what_would_fail(probe: Command, fakes: Path) -> None:
    """What is skipped by request is no cause, and nothing that needs it is refused for that."""
    argv = probe.check_argv("--format", "json", "--skip", "torch", "--skip", "cuda.*")
    ran = probe.on(scenario("cuda-999"), argv, fakes)
    assert (ran.code, ran.codes) == (0, [])
    skipped = {item["summary"] for item in ran.report["checks"] if item["id"].startswith("cuda.")}
    assert skipped == {"skipped by --skip"}


def test_liveness_on_a_host_with_a_hung_driver_does_not_ask_for_a_restart(probe: Command, fakes: Path) -> None:
    """A hung driver does not get better by killing the job: exit code 0, with the finding in the report."""
    argv = probe.check_argv("--format", "json", "--profile", "liveness", "--budget", "3s")
    ran = probe.on(scenario("nvml-hangs"), argv, fakes)
    assert ran.code == 0
    assert ran.codes[0] == "NVML_HANGS"


def test_liveness_asks_for_a_restart_where_one_mends(probe: Command, fakes: Path) -> None:
    """A container that lost its device permission: the remedy is a restart of it, so liveness fails."""
    argv = probe.check_argv("--format", "json", "--profile", "liveness", "--budget", "3s")
    ran = probe.on(scenario("cgroup-lost"), argv, fakes)
    assert (ran.code, ran.codes[0]) == (1, "DEVICE_NODE_EPERM")


def test_fewer_gpus_than_the_first_good_run_saw_is_a_failure(probe: Command, fakes: Path) -> None:
    """NVML's UUIDs of the first good run stay in the state: one of two that is missing later has fallen off."""
    assert probe.on(scenario("h100x2"), probe.check_argv("--skip", "torch"), fakes).code == 0
    kept = json.loads((probe.state / "state.json").read_text())
    assert len(kept["gpus"]) == 2
    ran = probe.on(scenario("h100x1"), probe.check_argv("--format", "json", "--skip", "torch"), fakes)
    assert (ran.code, ran.codes[0]) == (1, "NVML_COUNT_LOW")


def test_what_another_boot_saw_says_nothing(probe: Command, fakes: Path) -> None:
    """The file is void when its head is of another boot: one GPU is then what there is."""
    assert probe.on(scenario("h100x2"), probe.check_argv("--skip", "torch"), fakes).code == 0
    file = probe.state / "state.json"
    kept = json.loads(file.read_text())
    kept["head"]["boot_id"] = "00000000-0000-0000-0000-000000000000"
    file.write_text(json.dumps(kept))
    assert probe.on(scenario("h100x1"), probe.check_argv("--skip", "torch"), fakes).code == 0
    assert len(json.loads(file.read_text())["gpus"]) == 1
