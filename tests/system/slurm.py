"""A Slurm of its own on this machine: munged, slurmctld and three slurmd, which take themselves for three nodes.

::

    munged (own key, own socket)    slurmctld :a    slurmd -N n1 :b    slurmd -N n2 :c    slurmd -N n3 :d
    folder/taskprolog               what a node's tasks find in their environment: folder/n2.env

No cgroups, no accounting, nothing of the machine's own Slurm. Daemons carry a mark in their environment, which the
slurmstepds that they start inherit; what a test runs in an allocation carries another (`Command.mark`). Root only.
"""

import os
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.system.command import end, missing
from tests.system.lab import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "salloc", "sbatch", "scontrol", "sinfo")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NODES = ("n1", "n2", "n3")
READY_S = 30.0
CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
TaskProlog={folder}/taskprolog
GresTypes=gpu
"""
EACH = "CPUs=2 RealMemory=1000 Gres=gpu:2"
GRES = "AutoDetect=off\nName=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
"""Two GPUs a node as far as Slurm is concerned, which wants device files and gives them out by number."""


class Slurm:
    """The daemons, and what is run under them."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.settings = settings
        self.mark = f"SLURM_LAB_{uuid.uuid4().hex}"
        self.conf = folder / "slurm.conf"
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.conf), self.mark: "1"}
        self.client_env = {"PATH": PATH, "SLURM_CONF": str(self.conf)}

    # -- starting and stopping ----------------------------------------------------------------------------------------

    def make(self) -> None:
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(mode=0o700)
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o400)
        prolog = self.folder / "taskprolog"
        prolog.write_text(
            f'#!/bin/sh\ncat "{self.folder}/$SLURMD_NODENAME.env" 2>/dev/null\n'
            f'[ -e "{self.folder}/$SLURMD_NODENAME.hangs" ] && exec sleep 300\nexit 0\n'
        )
        prolog.chmod(0o755)
        (self.folder / "gres.conf").write_text(GRES)
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        text = CONF.format(folder=self.folder, host=host, port=ports[0])
        text += "".join(f"{name}={value}\n" for name, value in self.settings.items())
        for node, port in zip(NODES, ports[1:], strict=True):
            text += f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {EACH}\n"
        text += f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP\n"
        self.conf.write_text(text)
        self._daemon(
            "munged",
            "--force",
            *(f"--{name}={self.folder}/munge{suffix}" for name, suffix in MUNGE.items()),
        )
        self._daemon("slurmctld", "-f", str(self.conf))
        for node in NODES:
            self.start(node)
        self.well()

    def _daemon(self, *argv: str) -> None:
        """As a daemon: no child of the tests, which must leave none behind."""
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=READY_S, check=False)
        assert done.returncode == 0, f"{argv[0]}: {done.stdout}{done.stderr}"

    def start(self, node: str) -> None:
        self._daemon("slurmd", "-f", str(self.conf), "-N", node)
        wait_for(lambda: self.pid(node), READY_S, f"slurmd of {node}")

    def pid(self, name: str) -> int:
        """Of a daemon that runs; 0: it does not."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / f"{name}.pid").read_text())
            if self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                return pid
        return 0

    def kill(self, node: str) -> None:
        """Slurm notices after minutes only."""
        end(self.pid(node))

    def remove(self) -> None:
        """Also what slurmd's own children are: by their mark."""
        for pid in marked(self.mark):
            end(pid)

    # -- nodes --------------------------------------------------------------------------------------------------------

    def run(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=READY_S, check=False)
        return (done.stdout + done.stderr).strip()

    def state(self, node: str) -> tuple[str, str]:
        """As sinfo has it, and the reason ("" for none)."""
        found = self.run("sinfo", "-h", "-N", "-n", node, "-o", "%T|%E").partition("|")
        return found[0], "" if found[2] == "none" else found[2]

    def update(self, node: str, state: str, reason: str = "a test") -> None:
        words = [f"State={state}"] if state == "RESUME" else [f"State={state}", f"Reason={reason}"]
        said = self.run("scontrol", "update", f"NodeName={node}", *words)
        assert said == "", said

    def well(self) -> None:
        """All nodes up, idle and as they were made; nothing in the queue."""
        for node in NODES:
            for given in ("env", "hangs"):
                (self.folder / f"{node}.{given}").unlink(missing_ok=True)
            if not self.pid(node):
                self.start(node)
        self.run("scancel", "--user=root")

        def idle() -> bool:
            for node in NODES:
                state, _ = self.state(node)
                if state.startswith(("down", "drain", "unk")):
                    self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return self.run("squeue", "-h") == "" and {self.state(node)[0] for node in NODES} == {"idle"}

        wait_for(idle, READY_S, f"all nodes idle: {self.run('sinfo', '-N')}\n{self.run('squeue')}\n{self.logs()}")

    def give(self, node: str, **environment: str) -> None:
        """What the tasks of one node find in their environment, beside a line that they did not ask for."""
        lines = ["print a line that nobody asked for\n", *(f"export {k}={v}\n" for k, v in environment.items())]
        (self.folder / f"{node}.env").write_text("".join(lines))

    def hang(self, node: str) -> None:
        """Have tasks hang there before they become what they are to be."""
        (self.folder / f"{node}.hangs").touch()

    def logs(self) -> str:
        return "".join(f"{path.name}: {path.read_text()[-600:]}\n" for path in sorted(self.folder.glob("*.log")))


MUNGE = {"key-file": ".key", "socket": ".socket", "pid-file": ".pid", "log-file": ".log", "seed-file": ".seed"}


def marked(mark: str) -> dict[int, str]:
    """The processes that have a mark in their environment, with their command lines."""
    found = {}
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and mark.encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def slurm(folder: Path, **settings: str) -> Iterator[Slurm]:
    """A Slurm that is up; nothing of it is left afterwards. `settings`: more lines of slurm.conf."""
    if os.geteuid() != 0:
        missing("needs root: slurmd")
    for program in PROGRAMS:
        if not shutil.which(program, path=PATH):
            missing(f"needs {program} (apt-get install slurm-wlm munge)")
    made = Slurm(folder, settings)
    try:
        made.make()
        yield made
    finally:
        made.remove()
        assert marked(made.mark) == {}
