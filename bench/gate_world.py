"""The gate over two healthy hosts, simulated here, against torchrun started twice by hand for the same work."""

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.measure import TOO_LONG_S, Bench, Figure, environment, ratio, rounds, timed

BAR = 1.5
BAR_WITHOUT_CHECKS = 1.2
PROGRAM = Path(__file__).with_name("gate_bare.py")


def measure(bench: Bench) -> Figure:
    """All phases of ``probe gate --local 2``, and those without the hosts' own checks, over the bare world.

    ``--skip-node`` leaves out the two imports of torch that the hosts' own checks make; what is left is what the bare
    side does too, and an agent, a local round and the answer.
    """
    samples = rounds(
        bench.rounds,
        {
            "gate": lambda: timed(gate(bench), ready),
            "without checks": lambda: timed(gate(bench, "--skip-node", "--until", "world"), ready),
            "bare": lambda: bare_s(bench),
        },
    )
    values = (ratio(samples, "gate", "bare", BAR), ratio(samples, "without checks", "bare", BAR_WITHOUT_CHECKS))
    return Figure("gate_world", "probe gate --local 2, over torchrun --nnodes 2 by hand", values, samples)


def gate(bench: Bench, *arguments: str) -> list[str]:
    return [*bench.probe, "gate", "--local", "2", "--format", "json", *arguments]


def ready(stdout: str) -> None:
    found = json.loads(stdout)
    assert found["verdict"] == "ready", stdout
    assert found["world"]["verified"] == 18, stdout


def bare_s(bench: Bench) -> float:
    """Seconds until both torchruns have ended."""
    port = free_port()
    began = time.perf_counter()
    both = [subprocess.Popen(torchrun(bench, port, is_host), **quiet()) for is_host in (1, 0)]
    try:
        codes = [process.wait(TOO_LONG_S) for process in both]
    finally:
        for process in both:
            process.kill()
            process.wait()
    took_s = time.perf_counter() - began
    if any(codes):
        raise RuntimeError(f"torchrun left with {codes}")
    return took_s


def torchrun(bench: Bench, port: int, is_host: int) -> list[str]:
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "bench", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    conf = ["--rdzv-conf", f"is_host={is_host},join_timeout=60"]
    return [bench.python, "-m", "torch.distributed.run", "--nnodes", "2", *rendezvous, *conf, str(PROGRAM)]


def quiet() -> dict[str, Any]:
    env = environment(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    return {"env": env, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
