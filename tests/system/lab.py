"""A cluster on one machine: network namespaces as hosts, each with a real sshd, behind one bridge.

::

    controller's namespace: bridge 10.99.0.1/24 --veth-- h1 10.99.0.11 (sshd)   h2 10.99.0.12 (sshd)   ...

Each host's sshd sets the environment of what runs there: where probe is, a state folder of its own, a mark by which its
processes are found again wherever they moved, and the fault that its ranks shall have. Root only; removed at the end.
"""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.system.command import ARGV, BOUND_S, Ran, end, missing

FAULTY = Path(__file__).with_name("faulty")
PROGRAMS = ("ip", "tc", "ssh-keygen", "sshd")
CONTROLLER = "10.99.0.1"
READY_S = 10.0
LEFT_S = 12.0
"""How long after its controller a host may have processes of the gate: 10 s without a tick, and 2 to kill."""
POLL_S = 0.05


def sh(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
    return done.stdout


def wait_for(what: Any, within_s: float, words: str) -> None:
    """Poll a condition; the bound is generous, since a loaded machine is no failure."""
    until = time.monotonic() + within_s
    while not what():
        if time.monotonic() > until:
            raise AssertionError(f"not within {within_s:.0f} s: {words}")
        time.sleep(POLL_S)


class LabHost:
    """One namespace with its sshd."""

    port = 22
    listen = "0.0.0.0"

    def __init__(self, lab: "Lab", number: int) -> None:
        self.lab = lab
        self.number = number
        self.name = f"h{number}"
        self.address = f"10.99.0.{10 + number}"
        self.namespace = f"{lab.mark}{number}"
        self.folder = lab.folder / self.name
        self.running = False
        self.touched = False
        """Not as `Lab.make` left it."""

    def inside(self, *argv: str) -> str:
        return sh("ip", "netns", "exec", self.namespace, *argv)

    def make(self) -> None:
        self.folder.mkdir()
        veth = f"{self.lab.mark}v{self.number}"
        sh("ip", "netns", "add", self.namespace)
        sh(
            "ip",
            "-n",
            self.lab.controller,
            "link",
            "add",
            veth,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        sh("ip", "-n", self.lab.controller, "link", "set", veth, "master", "br0", "up")
        sh("ip", "-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            sh("ip", "-n", self.namespace, "link", "set", device, "up")
        self.key()

    def key(self) -> None:
        """A host key, new each time."""
        path = self.folder / "host_key"
        path.unlink(missing_ok=True)
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))

    def public_key(self) -> str:
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def start(self, keys: str = "", options: Mapping[str, str] | None = None, **environment: str) -> None:
        """Start (or restart) sshd; `environment` is what its sessions get beside the usual, `keys` who may log in."""
        self.stop()
        self.touched = True
        usual = {
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "PROBE_STATE": str(self.folder / "state"),
            "HOME": str(self.folder),  # no start-up file of whoever runs the tests
            self.lab.mark_variable: self.name,
            **environment,
        }
        config = {
            "Port": str(self.port),
            "ListenAddress": self.listen,
            "HostKey": str(self.folder / "host_key"),
            "AuthorizedKeysFile": keys or str(self.lab.folder / "key.pub"),
            "StrictModes": "no",
            "PidFile": str(self.folder / "pid"),
            "UsePAM": "no",
            "MaxStartups": "200",
            "SetEnv": " ".join(f'"{name}={value}"' for name, value in usual.items() if value),
            **(options or {}),
        }
        path = self.folder / "sshd_config"
        path.write_text("".join(f"{name} {value}\n" for name, value in config.items()))
        # as a daemon: no child of the tests, which must leave none behind
        self.inside(self.lab.sshd, "-f", str(path), "-E", str(self.folder / "log"))
        self.running = True
        wait_for(self.listens, READY_S, f"sshd of {self.name}: {(self.folder / 'log').read_text()[-500:]}")

    def mend(self) -> None:
        """Whatever a test did to it is undone."""
        self.inside("ip", "link", "set", "eth0", "up")
        self.inside("ip", "neigh", "flush", "dev", "eth0", "nud", "permanent")
        sh("ip", "-n", self.namespace, "route", "flush", "type", "unreachable", check=False)
        for qdisc in ("root", "clsact"):
            sh("ip", "netns", "exec", self.namespace, "tc", "qdisc", "del", "dev", "eth0", qdisc, check=False)
        if self.touched or not self.running:
            self.start()
            self.touched = False

    def listens(self) -> bool:
        return (self.folder / "pid").exists() and f":{self.port:04X} " in self.inside("cat", "/proc/net/tcp")

    def stop(self) -> None:
        if self.running:
            end(int((self.folder / "pid").read_text()))
            (self.folder / "pid").unlink()
        self.running = False

    def processes(self) -> dict[int, str]:
        """What runs on this host on behalf of a gate: by the mark that its sshd gives to sessions."""
        mark = f"{self.lab.mark_variable}={self.name}\0".encode()
        found = {}
        for path in Path("/proc").iterdir():
            with suppress(OSError):
                if path.name.isdigit() and mark in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        return found

    def black_hole(self, other: "LabHost") -> None:
        """Frames between the two go to a station that nobody is; neither gets an error."""
        for one, two in ((self, other), (other, self)):
            one.inside(
                "ip", "neigh", "replace", two.address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"
            )

    def no_route(self, other: "LabHost") -> None:
        """Whatever connects from here to `other` is told so by this host's own kernel, at once."""
        self.inside("ip", "route", "add", "unreachable", other.address)

    def loses(self, percent: float) -> None:
        """So many of the packets that leave it are lost, at random; ssh's go another way, by a network for management.

        A filter in direct action: its classic BPF program returns what becomes of the packet. netem, which is made for
        this, is in fewer kernels.
        """
        below = int(percent / 100 * (1 << 32))
        program = (
            (0x28, 0, 0, 34),  #              ldh [34]: the source port, behind 14 bytes of Ethernet and 20 of IPv4
            (0x15, 3, 0, 22),  #              jeq #22, skip three: sshd's
            (0x20, 0, 0, 0xFFFFF000 + 56),  # ld [SKF_AD_OFF + SKF_AD_RANDOM]: 32 random bits
            (0x35, 1, 0, below),  #           jge #below, skip one
            (0x06, 0, 0, 2),  #               ret TC_ACT_SHOT: it is dropped, and counted
            (0x06, 0, 0, 0),  #               ret TC_ACT_OK
        )
        code = f"{len(program)}," + ",".join(" ".join(map(str, words)) for words in program)
        self.tc("qdisc add dev eth0 clsact")
        self.tc("filter add dev eth0 egress bpf da bytecode", code)

    def slow(self, rate: str, other: "LabHost | None" = None) -> None:
        """All that leaves it, or only what goes to `other`, goes at most at `rate`."""
        if other is None:
            self.tc(f"qdisc add dev eth0 root tbf rate {rate} burst 64kbit latency 400ms")
            return
        self.tc("qdisc add dev eth0 root handle 1: htb")  # no default class: the rest is not shaped
        self.tc(f"class add dev eth0 parent 1: classid 1:1 htb rate {rate}")
        self.tc(f"filter add dev eth0 parent 1: protocol ip u32 match ip dst {other.address}/32 flowid 1:1")

    def tc(self, words: str, *more: str) -> None:
        """Traffic control, as far as this kernel has it."""
        try:
            self.inside("tc", *words.split(), *more)
        except RuntimeError as error:
            missing(str(error))

    def beyond_reach(self) -> None:
        """What the controller sends it, and it sends to the controller, gets nowhere: only other hosts reach it."""
        dead = ("lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev")
        self.inside("ip", "neigh", "replace", CONTROLLER, *dead, "eth0")
        sh("ip", "-n", self.lab.controller, "neigh", "replace", self.address, *dead, "br0")


class Lab:
    """The hosts, and `probe gate` over them."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder = folder
        self.mark = f"pg{os.getpid() % 100000}"
        self.mark_variable = f"LAB_{uuid.uuid4().hex}"
        self.controller = f"{self.mark}c"
        self.sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        self.where = ["ip", "netns", "exec", self.controller]
        """Before a command that shall run in the controller's namespace."""
        self.hosts = [LabHost(self, number) for number in range(1, hosts + 1)]

    def __getitem__(self, number: int) -> LabHost:
        return self.hosts[number - 1]

    def make(self) -> None:
        self.wire()
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Debian's sshd is otherwise started by a unit that makes it
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key"))
        self.mend()

    def wire(self) -> None:
        """The namespaces and their network, without an sshd anywhere."""
        sh("ip", "netns", "add", self.controller)
        sh("ip", "-n", self.controller, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", self.controller, "addr", "add", f"{CONTROLLER}/24", "dev", "br0")
        for device in ("lo", "br0"):
            sh("ip", "-n", self.controller, "link", "set", device, "up")
        for host in self.hosts:
            host.make()

    def mend(self) -> None:
        sh("ip", "-n", self.controller, "neigh", "flush", "dev", "br0", "nud", "permanent")
        for host in self.hosts:
            host.mend()
        self.know()

    def know(self) -> None:
        """Write the known hosts as they are now."""
        lines = [f"{host.address} {host.public_key()}\n" for host in self.hosts]
        (self.folder / "known_hosts").write_text("".join(lines))
        (self.folder / "config").write_text("".join(f"Host {h.name}\n  HostName {h.address}\n" for h in self.hosts))

    def behind(self, jump: LabHost, *hosts: LabHost) -> None:
        """These hosts can be reached through `jump` only."""
        for host in hosts:
            host.beyond_reach()
        config = self.folder / "config"
        names = " ".join(host.name for host in hosts)
        config.write_text(f"Host {names}\n  ProxyJump {jump.name}\n{config.read_text()}")

    def forget(self, host: LabHost) -> None:
        """Take its key out of the known hosts."""
        path = self.folder / "known_hosts"
        path.write_text("".join(line for line in path.read_text().splitlines(True) if host.address not in line))

    def remove(self) -> None:
        for host in self.hosts:
            host.stop()
            for pid in host.processes():
                end(pid)
            sh("ip", "netns", "delete", host.namespace, check=False)
        sh("ip", "netns", "delete", self.controller, check=False)

    # -- the gate -----------------------------------------------------------------------------------------------------

    def argv(self, *args: str, hosts: Sequence[LabHost] | None = None) -> list[str]:
        return self.over("gate", "--format", "json", *args, hosts=hosts)

    def over(self, command: str, *args: str, hosts: Sequence[LabHost] | None = None) -> list[str]:
        """Any command of probe that runs over several hosts."""
        names = ",".join(host.name for host in (hosts or self.hosts))
        ssh = ["--ssh-config", str(self.folder / "config"), "--known-hosts", str(self.folder / "known_hosts")]
        words = [command, "--hosts", names, "--identity", str(self.folder / "key"), *ssh, *args]
        return [*self.where, *ARGV, *words]

    def env(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith(("PROBE_", "LAB_"))}

    def gate(self, *args: str, hosts: Sequence[LabHost] | None = None) -> Ran:
        """Run the gate over all hosts, or some, and let it end."""
        return self.run(self.argv(*args, hosts=hosts))

    def run(self, argv: Sequence[str]) -> Ran:
        with self.start(argv) as process:
            return self.finish(process)

    def started(self, *args: str, hosts: Sequence[LabHost] | None = None) -> Any:
        """The gate, just started: a context that ends it if it is still there."""
        return self.start(self.argv(*args, hosts=hosts))

    @contextmanager
    def start(self, argv: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
        began = time.monotonic()
        process = subprocess.Popen(
            argv,
            env=self.env(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.began = began  # type: ignore[attr-defined]
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(5)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def finish(self, process: "subprocess.Popen[str]", bound_s: float = 4 * BOUND_S) -> Ran:
        out, err = process.communicate(timeout=bound_s)
        return Ran(process.returncode, out, err, time.monotonic() - process.began)  # type: ignore[attr-defined]

    def left(self) -> dict[str, dict[int, str]]:
        """By host, what a gate has left running there."""
        return {host.name: found for host in self.hosts if (found := host.processes())}


def needed() -> None:
    """Root, and the programs: in CI they must be there."""
    if os.geteuid() != 0:
        missing("needs root: network namespaces")
    for program in PROGRAMS:
        if not shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            missing(f"needs {program} (apt-get install openssh-server iproute2)")
