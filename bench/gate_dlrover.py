"""The gate over two healthy hosts, simulated here, against DLRover's network check of the same two nodes.

::

    probe gate --local 2    |    dlrover master, two dlrover-run --network-check     (alternating)

Each from the start of its processes: the gate until it has left with its verdict, DLRover until both nodes have printed
"Network check result is True", which is before the training that it would then start. DLRover is installed once, from
PyPI into a virtual environment of its own beside this project's, with the same torch (``.venv-dlrover``).
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench.gate_world import free_port, gate, ready
from bench.measure import ROOT, TOO_LONG_S, Bench, Figure, environment, ratio, rounds, timed

BAR = 0.8
FOLDER = ROOT / ".venv-dlrover"
PACKAGES = ("torch==2.13.0", "numpy", "dlrover[k8s]==0.6.1", "protobuf")
VERDICT = b"Network check result is True"
TRAINED = "print('trained')"


def measure(bench: Bench) -> Figure:
    python = install()
    samples = rounds(bench.rounds, {"gate": lambda: timed(gate(bench), ready), "dlrover": lambda: dlrover_s(python)})
    what = "probe gate --local 2, over dlrover-run --network-check of two nodes"
    return Figure("gate_dlrover", what, (ratio(samples, "gate", "dlrover", BAR),), samples)


def install() -> Path:
    """The interpreter that has DLRover; made once."""
    python = FOLDER / "bin" / "python"
    if not (FOLDER / "bin" / "dlrover-run").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", *PACKAGES], check=True)
    return python


def dlrover_s(python: Path) -> float:
    """Seconds until both nodes have printed their verdict; all that was started is gone after that."""
    program = FOLDER / "trained.py"
    program.write_text(TRAINED)
    port = str(free_port())
    master = [str(python), "-u", "-m", "dlrover.python.master.main", "--platform", "local"]
    master += ["--port", port, "--node_num", "2", "--job_name", "bench"]
    node = [str(python.with_name("dlrover-run")), "--network-check", "--nnodes", "2", "--nproc-per-node", "1"]
    began = time.perf_counter()
    processes = [start(master, subprocess.DEVNULL)]
    try:
        for rank in range(2):
            ours = {"NODE_RANK": str(rank), "NODE_ID": str(rank), "NODE_NUM": "2", "POD_IP": "127.0.0.1"}
            address = {"DLROVER_MASTER_ADDR": f"127.0.0.1:{port}", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
            processes.append(start([*node, str(program)], subprocess.PIPE, **ours, **address))
        wait_for_verdicts(processes[1:], began + TOO_LONG_S)
        return time.perf_counter() - began
    finally:
        for process in processes:
            end(process)


def start(argv: Sequence[str], out: int, **variables: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        argv,
        env=environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def wait_for_verdicts(nodes: "Sequence[subprocess.Popen[bytes]]", until: float) -> None:
    """Read what the nodes say until each has said its verdict."""
    said = {node.stdout.fileno(): b"" for node in nodes if node.stdout is not None}
    while any(VERDICT not in words for words in said.values()):
        left_s = until - time.perf_counter()
        open_ = [fd for fd, words in said.items() if VERDICT not in words]
        readable = select.select(open_, [], [], max(0.0, left_s))[0]
        if not readable:
            raise RuntimeError(f"no verdict of DLRover: {b' | '.join(words[-500:] for words in said.values())!r}")
        for fd in readable:
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                raise RuntimeError(f"DLRover ended without a verdict: {said[fd][-2000:]!r}")
            said[fd] += chunk


def end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
