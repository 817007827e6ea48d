"""This machine as two hosts with a real sshd each, by two loopback addresses; each has half of the GPUs.

::

    controller --ssh--> h1 127.0.0.2 (sshd, GPUs 0 .. n/2)   h2 127.0.0.3 (sshd, the other GPUs)

Where network namespaces cannot be made, or GPUs cannot be seen from inside them. With another NCCL_HOSTID for each,
NCCL takes them for two hosts and uses sockets. sshd passes none of its own environment on: what steers NCCL, CUDA and
the loader here is set for its sessions as well.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from probe.rank.facts import visible_gpus
from tests.system.lab import Lab, LabHost, sh

PASSED_ON = ("NCCL_", "TORCH_", "NVSHMEM_", "CUDA_", "LD_LIBRARY_PATH", "PATH", "GLOO_")
PORT = 2299


class PairHost(LabHost):
    """One of the two."""

    port = PORT

    def __init__(self, lab: "Pair", number: int) -> None:
        super().__init__(lab, number)
        self.address = self.listen = f"127.0.0.{1 + number}"

    def inside(self, *argv: str) -> str:
        return sh(*argv)

    def make(self) -> None:
        self.folder.mkdir()
        self.key()

    def mend(self) -> None:
        if self.touched or not self.running:
            self.start()
            self.touched = False

    def listens(self) -> bool:
        packed = "".join(f"{int(part):02X}" for part in reversed(self.address.split(".")))
        return (self.folder / "pid").exists() and f"{packed}:{self.port:04X} " in sh("cat", "/proc/net/tcp")

    def start(self, keys: str = "", options: Mapping[str, str] | None = None, **environment: str) -> None:
        gpus = visible_gpus()
        share = len(gpus) // len(self.lab.hosts)
        mine = gpus[(self.number - 1) * share : self.number * share]
        ours = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        steering = {"NCCL_HOSTID": self.name, "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        super().start(keys, options, **{**ours, "CUDA_VISIBLE_DEVICES": ",".join(mine), **steering, **environment})


class Pair(Lab):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, hosts=0)
        self.where = []
        self.hosts: list[LabHost] = [PairHost(self, number) for number in (1, 2)]

    def wire(self) -> None:
        for host in self.hosts:
            host.make()

    def mend(self) -> None:
        for host in self.hosts:
            host.mend()
        self.know()

    def know(self) -> None:
        keys = [f"[{host.address}]:{host.port} {host.public_key()}\n" for host in self.hosts]
        (self.folder / "known_hosts").write_text("".join(keys))
        hosts = [f"Host {host.name}\n  HostName {host.address}\n  Port {host.port}\n" for host in self.hosts]
        (self.folder / "config").write_text("".join(hosts))

    def argv(self, *args: str, hosts: Sequence[LabHost] | None = None) -> list[str]:
        return super().argv("--ifname", "lo", *args, hosts=hosts)

    def remove(self) -> None:
        for host in self.hosts:
            host.stop()


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    lab = Pair(folder)
    try:
        lab.make()
        yield lab
    finally:
        lab.remove()


def used_mib() -> int:
    """Of all GPUs."""
    argv = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30)
    return sum(map(int, done.stdout.split()))
