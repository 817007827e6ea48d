"""What the checks around the GPUs cost: a Jupyter server and an sshd, the engine's memory, passes that stand.

The servers are real ones of this machine, on loopback and in a folder that goes with them.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from bench.measure import Bench, Figure, Value, environment, passed, ratio, rounds, timed

RATIO_BAR = 1.15
MEMORY_BAR_MB = 90.0
RESTED_BAR = 12.0
READY_S = 30.0
SWITCHES = {"ENABLE_JUPYTER_CHECK": "true", "ENABLE_SSH_CHECK": "true"}


def services(bench: Bench) -> Figure:
    """Readiness with a Jupyter server and an sshd to ask, over readiness without."""
    bench = apart(bench)
    with running() as arguments:
        with_them = bench.check(*arguments)

        def both_answered(stdout: str) -> None:
            for check in ("service.jupyter", "service.ssh", "torch.tensor"):
                assert passed(stdout, check), f"{check} did not pass: {stdout[-2000:]}"

        samples = rounds(
            bench.rounds,
            {
                "with services": lambda: timed(["env", *words(SWITCHES), *with_them], both_answered),
                "without": lambda: timed(bench.check("--skip", "service")),
            },
        )
    what = "probe check with Jupyter and ssh to ask, over probe check without (readiness)"
    return Figure("services", what, (ratio(samples, "with services", "without", RATIO_BAR),), samples)


def memory(bench: Bench) -> Figure:
    """The engine's own process in readiness with both services: the kernel's high-water mark, children apart."""
    bench = apart(bench)
    with running() as arguments:
        argv = ["env", *words(SWITCHES), *bench.check(*arguments)]
        peaks = [peak_mb(argv) for _ in range(5)]
    value = Value("engine, peak resident", max(peaks), "MB", MEMORY_BAR_MB)
    return Figure("memory", "the engine's process in readiness with Jupyter and ssh", (value,), {"peak_mb": peaks})


def rested(bench: Bench) -> Figure:
    """A check whose torch rung rests on the pass of the run before, over an interpreter that does nothing."""
    arguments = ("--torch-every", "10m")

    def rests(stdout: str) -> None:
        skips = {found["id"]: found["summary"] for found in json.loads(stdout)["checks"] if found["status"] == "skip"}
        assert skips.get("torch.tensor", "").startswith("passed "), skips

    timed(bench.check(*arguments))
    samples = rounds(
        max(15, bench.rounds),
        {
            "probe": lambda: timed(bench.check(*arguments), rests),
            "pass": lambda: timed(bench.bare("pass")),
        },
    )
    what = "probe check with torch_every satisfied, over python -c pass"
    return Figure("rested", what, (ratio(samples, "probe", "pass", RESTED_BAR),), samples)


def apart(bench: Bench) -> Bench:
    """With a state of its own: where a service was seen, later runs miss it."""
    return replace(bench, state=bench.state.with_name("services"))


def words(variables: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in variables.items()]


def peak_mb(argv: Sequence[str]) -> float:
    """VmHWM of a process that execs `argv`, read until it ends."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    peak_kib = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        peak_kib = max(peak_kib, int(fields.get("VmHWM", "0 kB").split()[0]))
        time.sleep(0.002)
    assert process.returncode == 0, process.returncode
    return round(peak_kib / 1024, 1)


# ---- the servers -----------------------------------------------------------------------------------------------------


@contextmanager
def running() -> Iterator[tuple[str, ...]]:
    """A Jupyter server and an sshd; yields the flags by which probe finds them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="probe-bench-services-")))
        runtime = stack.enter_context(jupyter(folder / "jupyter"))
        port = stack.enter_context(sshd(folder / "sshd"))
        yield (
            "--set",
            f'checks."service.jupyter".runtime_dir="{runtime}"',
            "--set",
            f'checks."service.ssh".port={port}',
        )


@contextmanager
def jupyter(folder: Path, *, stopped: bool = False) -> Iterator[Path]:
    """Yields its runtime folder."""
    folder.mkdir()
    argv = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    homes = {name: str(folder) for name in ("HOME", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    process = subprocess.Popen(argv, cwd=folder, stderr=subprocess.DEVNULL, env=environment(**homes))
    with ended(process):
        until(lambda: answers(folder), "Jupyter (pip install jupyter-server) did not start")
        if stopped:
            process.send_signal(signal.SIGSTOP)
        yield folder


def answers(folder: Path) -> bool:
    """Its runtime file is there before it listens, and it listens before it serves."""
    for file in folder.glob("jpserver-*.json"):
        with suppress(OSError, ValueError):
            url = json.loads(file.read_text())["url"] + "api"
            with urllib.request.urlopen(url):  # noqa: S310 - of a server of ours
                return True
    return False


@contextmanager
def sshd(folder: Path, *, stopped: bool = False) -> Iterator[int]:
    """Yields its port."""
    folder.mkdir(mode=0o700)
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    assert Path(program).exists(), "no sshd here: apt-get install openssh-server"
    Path("/run/sshd").mkdir(exist_ok=True)
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    port = free_port()
    argv = [program, "-D", "-e", "-p", str(port), "-h", str(key), "-o", "ListenAddress=127.0.0.1", "-o", "PidFile=none"]
    argv += ["-o", "MaxStartups=1000"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    with ended(process):
        until(lambda: listening(port), "sshd did not start")
        if stopped:
            process.send_signal(signal.SIGSTOP)
        yield port


@contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def until(holds: Callable[[], bool], otherwise: str) -> None:
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > READY_S:
            raise RuntimeError(otherwise)
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def listening(port: int) -> bool:
    """By the kernel's table: a connection would cost the source a penalty."""
    wanted = f"0100007F:{port:04X}"
    return any(line.split()[1] == wanted for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
