"""Two probes at once: both answer, neither spoils the other's state, one GPU test at a time."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fakes import host
from tests.fakes.build import build
from tests.fakes.scenario import Scenario
from tests.system.command import Command, finish

H100X2 = Path(__file__).parents[1] / "hosts" / "h100x2.toml"


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """A lock of the state folder, held by somebody else."""
    folder.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


def test_on_the_cpu_both_compute(probe: Command) -> None:
    """CPU targets take no lock: both are healthy, and stderr stays silent."""
    argv = probe.check_argv("--format", "json")
    with ExitStack() as stack:
        processes = [stack.enter_context(probe.started(argv)) for _ in range(2)]
        runs = [finish(process) for process in processes]
    for ran in runs:
        assert (ran.code, ran.status("torch.tensor"), ran.err) == (0, "pass", "")


@pytest.mark.system
@pytest.mark.cc
def test_on_gpus_both_answer_and_the_state_is_whole(probe: Command, fakes: Path) -> None:
    """The second waits for the first, or says that another probe is testing; the file is one run's, not a mixture."""
    build(fakes)
    argv = host.command(Scenario.load(H100X2), probe.check_argv("--format", "json", "--skip", "torch"), fakes)
    with ExitStack() as stack:
        processes = [stack.enter_context(probe.started(argv)) for _ in range(4)]
        runs = [finish(process) for process in processes]
    for ran in runs:
        assert ran.code == 0
        tests = [item for item in ran.report["checks"] if item["id"] == "cuda.kernel"]
        assert len(tests) == 2
        for item in tests:
            assert item["status"] == "pass" or item["summary"] == "another probe is testing"
        assert ran.err == "" or ran.err.startswith("probe: state not kept: another probe is writing")
    assert any(item["status"] == "pass" for ran in runs for item in ran.report["checks"] if item["id"] == "cuda.kernel")
    assert len(json.loads((probe.state / "state.json").read_text())["gpus"]) == 2
    assert not (probe.state / "state.json.new").exists()


@pytest.mark.system
@pytest.mark.cc
def test_a_gpu_test_that_goes_on_elsewhere_is_waited_for_and_then_said(probe: Command, fakes: Path) -> None:
    """The lock is held throughout: rungs 3 and 4 are skip, beside the verdict it is said that nothing was computed."""
    build(fakes)
    argv = probe.check_argv("--format", "json", "--skip", "torch")
    with locked(probe.state, "gpu.lock"):
        ran = probe.on(Scenario.load(H100X2), argv, fakes)
    assert ran.code == 0
    kernels = [item for item in ran.report["checks"] if item["id"] == "cuda.kernel"]
    assert [(item["status"], item["summary"]) for item in kernels] == [("skip", "another probe is testing")] * 2
    assert ran.status("cuda.init") == "pass"
    assert any("another probe is testing" in note for note in ran.report["notes"])


@pytest.mark.system
@pytest.mark.cc
def test_liveness_takes_no_lock(probe: Command, fakes: Path) -> None:
    """It never touches CUDA, so it waits for nobody who does."""
    build(fakes)
    with locked(probe.state, "gpu.lock"):
        ran = probe.on(Scenario.load(H100X2), probe.check_argv("--format", "json", "--profile", "liveness"), fakes)
    assert (ran.code, ran.report["verdict"], ran.err) == (0, "healthy", "")
    assert ran.report["elapsed_s"] < 1


@pytest.mark.system
@pytest.mark.cc
def test_a_state_that_another_probe_is_writing_is_not_waited_for(probe: Command, fakes: Path) -> None:
    """The file's lock is held: one line on stderr, verdict and exit code unchanged, nothing written."""
    build(fakes)
    with locked(probe.state, "lock"):
        ran = probe.on(Scenario.load(H100X2), probe.check_argv("--format", "json", "--skip", "torch"), fakes)
    assert ran.code == 0
    assert ran.err == f"probe: state not kept: another probe is writing {probe.state}\n"
    assert not (probe.state / "state.json").exists()
