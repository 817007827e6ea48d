"""On real GPUs, however many: healthy, beside a job, with the memory full, and a child killed at work.

These run where /dev/nvidiactl is and nothing else uses the GPUs. What is measured is printed (``pytest -s``).
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

JOB = """
import torch, signal
torch.cuda.init()
device = torch.device("cuda", 0)
{body}
torch.cuda.synchronize()
print("ready", flush=True)
{then}
"""
WORK = JOB.format(
    body="a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)",
    then="while True:\n    for _ in range(50): b = a @ a\n    torch.cuda.synchronize()",
)
FULL = JOB.format(
    body="free, _ = torch.cuda.mem_get_info(0)\n"
    "block = torch.empty(free - (38 << 20), dtype=torch.uint8, device=device)",
    then="signal.pause()",
)
BIG = JOB.format(
    body="block = torch.empty(42 << 30, dtype=torch.uint8, device=device)\n"
    "a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)",
    then="while True:\n    for _ in range(500): b = a @ a",
)


def probe(state: Path, *arguments: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "probe", "check", "--format", "json", "--state", str(state), "--budget", "30s"]
    done = subprocess.run([*argv, *arguments], capture_output=True, timeout=60, check=False)
    assert done.stdout, done.stderr.decode()
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["exit_code"] == done.returncode
    return report


def by_target(report: dict[str, Any], check_id: str) -> dict[str, dict[str, Any]]:
    return {check["target"]: check for check in report["checks"] if check["id"] == check_id}


def uuids() -> list[str]:
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    return [line.partition("UUID: ")[2].rstrip(")") for line in said.splitlines()]


def wait_until_idle() -> None:
    """NVML's utilisation is of a sampling period that has passed: it shows a job for a while after its end."""
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    said = ""
    for _ in range(100):
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        if {line.strip() for line in said.splitlines()} == {"0"}:
            return
    pytest.fail(f"the GPUs do not become idle: {said}")


@contextmanager
def job(code: str) -> Iterator[subprocess.Popen[str]]:
    """A job on the first GPU, at work when this returns."""
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.kill()
        running.wait(30)
        assert running.stdout is not None
        running.stdout.close()


def test_a_healthy_host_is_fully_tested(state: Path) -> None:
    """Every GPU passes every rung, exactly."""
    report = probe(state)
    print(json.dumps({"verdict": report["verdict"], "elapsed_s": report["elapsed_s"], "causes": report["causes"]}))
    assert report["verdict"] in ("healthy", "degraded")
    targets = {f"gpu:{uuid}" for uuid in uuids()}
    for check_id in ("nvml.memory", "cuda.context", "cuda.kernel", "torch.arch", "torch.tensor"):
        found = by_target(report, check_id)
        assert set(found) == targets
        assert {check["status"] for check in found.values()} == {"pass"}, found


def test_cuda_alone_needs_no_torch(state: Path) -> None:
    """`--only cuda` tests each GPU without importing torch."""
    report = probe(state, "--only", "cuda")
    assert {check["status"] for check in report["checks"]} == {"pass"}
    assert {check["id"].partition(".")[0] for check in report["checks"]} == {"cuda"}


def test_a_gpu_with_a_job_is_left_alone_and_the_others_are_tested(state: Path) -> None:
    """Busy: skipped with the evidence, said in the verdict; the job goes on."""
    probe(state)  # the state file knows the GPUs from a good run
    with job(WORK) as running:
        report = probe(state)
        assert running.poll() is None
    first, *others = [f"gpu:{uuid}" for uuid in uuids()]
    tensors = by_target(report, "torch.tensor")
    print(tensors[first]["summary"])
    assert tensors[first]["status"] == "skip"
    assert tensors[first]["summary"].startswith("busy (")
    assert {tensors[name]["status"] for name in others} <= {"pass"}
    assert report["verdict"] in ("healthy", "degraded")
    assert any("busy" in note for note in report["notes"])


def test_a_busy_gpu_is_tested_where_that_is_asked_for(state: Path) -> None:
    """`--busy test` computes beside the job, and exactly."""
    with job(WORK):
        report = probe(state, "--busy", "test")
    assert {check["status"] for check in by_target(report, "torch.tensor").values()} == {"pass"}


def test_a_full_gpu_is_skipped_and_never_failed(state: Path) -> None:
    """Out of memory in the check is no fault of the GPU: passive it is busy, tested it is a skip."""
    with job(FULL):
        passive = probe(state)
        tested = probe(state, "--busy", "test")
    first = f"gpu:{uuids()[0]}"
    assert by_target(passive, "cuda.context")[first]["summary"].startswith("busy (")
    context = by_target(tested, "cuda.context")[first]
    print(context["summary"])
    assert (context["status"], context["data"]["cuda_code"]) == ("skip", 2)
    assert passive["verdict"] in ("healthy", "degraded")
    assert tested["verdict"] in ("healthy", "degraded")


def test_how_long_a_child_killed_at_work_takes_to_go(state: Path) -> None:
    """SIGKILL with 42 GB allocated and products in flight: gone long before 10 s, after which it counts as stuck."""
    with job(BIG) as running:
        pidfd = os.pidfd_open(running.pid)
        began = time.monotonic()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        gone, _, _ = select.select([pidfd], [], [], 10)
        took_s = time.monotonic() - began
        os.close(pidfd)
    print(f"killed at work: gone after {took_s:.3f} s")
    assert gone
    wait_until_idle()
    report = probe(state)
    assert {check["status"] for check in by_target(report, "torch.tensor").values()} == {"pass"}
