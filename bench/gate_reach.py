"""Reaching 200 hosts, which are as many addresses of one real sshd here, against pdsh running ``python -c pass``.

The sshd shares the cores, so the wall time is mostly its own; what transfers is the controller's CPU for each host.
Needs root, openssh-server and pdsh.
"""

import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.measure import TOO_LONG_S, Bench, Figure, Value, environment, rounds
from tests.system.lab import Lab

HOSTS = 200
BAR_CPU_MS = 12.0
BAR_WALL = 0.7
RUNS = 3


def measure(bench: Bench) -> Figure:
    cpu_ms: dict[str, list[float]] = {"gate": [], "pdsh": []}
    with tempfile.TemporaryDirectory(prefix="probe-bench-reach-") as folder:
        lab = Lab(Path(folder), hosts=1)
        try:
            lab.make()
            names = addresses(lab)
            sides = {
                "gate": lambda: side(gate(bench, lab, names), lab, cpu_ms["gate"]),
                "pdsh": lambda: side(pdsh(bench, names), lab, cpu_ms["pdsh"]),
            }
            samples = rounds(min(RUNS, bench.rounds), sides)
        finally:
            lab.remove()
    values = (
        Value("gate, controller CPU per host", median(cpu_ms["gate"][1:]), "ms", BAR_CPU_MS),
        Value("pdsh, client CPU per host", median(cpu_ms["pdsh"][1:]), "ms"),
        Value("gate / pdsh", median(samples["gate"]) / median(samples["pdsh"]), "x", BAR_WALL),
    )
    return Figure(
        "gate_reach",
        f"--until reach, {HOSTS} addresses of one sshd, over pdsh -f 64",
        values,
        {**samples, **{f"{name}, CPU ms per host": each for name, each in cpu_ms.items()}},
    )


def addresses(lab: Lab) -> list[str]:
    """Many addresses of the lab's one host, all with its key."""
    host = lab[1]
    names = [f"10.99.1.{n + 1}" for n in range(HOSTS)]
    for name in names:
        host.inside("ip", "addr", "add", f"{name}/32", "dev", "lo")
    key = host.public_key()
    (lab.folder / "known_hosts").write_text("".join(f"{name} {key}\n" for name in names))
    subprocess.run(
        ["ip", "-n", lab.controller, "route", "add", "10.99.1.0/24", "via", host.address], check=True, timeout=10
    )
    return names


def gate(bench: Bench, lab: Lab, names: Sequence[str]) -> list[str]:
    where = ["--identity", str(lab.folder / "key"), "--known-hosts", str(lab.folder / "known_hosts")]
    argv = [*bench.probe, "gate", "--hosts", ",".join(names), "--until", "reach", "--format", "json"]
    return [*argv, *where, "--ssh-config", "none", "--ssh-user", "root", "--remote-python", bench.python]


def pdsh(bench: Bench, names: Sequence[str]) -> list[str]:
    if not shutil.which("pdsh"):
        raise OSError("pdsh is not installed (apt-get install pdsh)")
    return ["pdsh", "-R", "ssh", "-f", "64", "-w", ",".join(names), f"{bench.python} -c pass"]


def side(argv: Sequence[str], lab: Lab, cpu_ms: list[float]) -> float:
    """Wall seconds of one run in the controller's namespace; its CPU for each host goes to `cpu_ms`."""
    ssh = f"-i {lab.folder}/key -o UserKnownHostsFile={lab.folder}/known_hosts -o BatchMode=yes -l root"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        ["ip", "netns", "exec", lab.controller, *argv],
        env=environment(PDSH_SSH_ARGS_APPEND=ssh, PYTHONPATH=os.environ.get("PYTHONPATH", "")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TOO_LONG_S,
        check=False,
    )
    took_s = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{argv[0]} left with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
    if "gate" in argv:
        assert len(json.loads(done.stdout)["clean_hosts"]) == HOSTS
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cpu_ms.append(cpu_s * 1000 / HOSTS)
    return took_s
