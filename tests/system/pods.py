"""The pods of an indexed Job on one machine, from its manifest: what kubelet and Job controller do with the commands.

::

    pod n    network namespace of the lab, host name, /etc/hosts, /etc/passwd, the Secret, the user's rights
             init containers one after another, then the container; each in a pid namespace, which ends with its pid 1

Names are resolved by /etc/hosts, where a cluster has DNS; all else is as the manifest says. One container that fails
ends the Job, and with it all pods, by SIGTERM to their pid 1.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.system.lab import FAULTY, POLL_S, Lab, LabHost
from tests.system.test_user import NEEDED, opened

PLACE = "/mnt"
"""Where a pod's folder lies in its mount namespace: working directory, home, temporary files."""
GRACE_S = 30.0


class Ended(NamedTuple):
    container: str
    code: int
    output: str


class Pod:
    """One of them; `user` is its uid, and gid."""

    def __init__(self, host: LabHost, job: Mapping[str, Any], folder: Path, user: int) -> None:
        self.name = f"{job['metadata']['name']}-{host.number - 1}"
        self.index = host.number - 1
        self.user = user
        self.folder = folder / self.name
        self.ended: list[Ended] = []
        self._host = host
        spec = job["spec"]["template"]["spec"]
        self._domain = spec["subdomain"]
        self._containers = [*spec["initContainers"], *spec["containers"]]
        self._process: subprocess.Popen[bytes] | None = None

    def make(self, pods: "Sequence[Pod]", keys: Path, files: Sequence[Path]) -> None:
        """Its files: in `PLACE`, and those that are laid over the machine's own."""
        self.folder.mkdir()
        for name in ("place", "place/tmp"):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o777)
        for path in files:
            shutil.copy(path, self.folder / "place")
        shutil.copytree(keys, self.folder / "keys")
        names = [f"{pod._host.address} {pod.name}.{pod._domain} {pod.name}\n" for pod in pods]
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        users = [line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[2] != "1000"]
        (self.folder / "passwd").write_text("\n".join([*users, f"train:x:1000:1000::{PLACE}:/bin/sh\n"]))

    def start(self, env: Mapping[str, str]) -> None:
        """Its next container."""
        container = self._containers[len(self.ended)]
        given = {one["name"]: one["value"] for one in container.get("env", ())}
        usual = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": PLACE,
            "TMPDIR": f"{PLACE}/tmp",
            "PROBE_STATE": f"{PLACE}/state",
            "JOB_COMPLETION_INDEX": str(self.index),
            self._host.lab.mark_variable: self._host.name,
        }
        words = [f"{name}={value}" for name, value in {**usual, **given, **env}.items()]
        namespaces = ["--mount", "--propagation", "private", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        entry = self._entry(len(self.ended)) + f'exec {shlex.join(self._rights())} env -i "$@"'
        argv = ["ip", "netns", "exec", self._host.namespace, "unshare", *namespaces, "sh", "-euc", entry, "sh", *words]
        with (self.folder / container["name"]).open("wb") as output:
            self._process = subprocess.Popen(
                [*argv, *container["command"]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
            )

    def _entry(self, number: int) -> str:
        """Shell lines that make the container out of this machine."""
        here, stage = shlex.quote(str(self.folder)), self.folder / f"stage-{number}"
        mode = "0400" if self.user == 0 else "0440"  # fsGroup makes it readable for the group
        return (
            f"mount --bind {here}/place {PLACE}\n"
            f"mount --bind {here}/hosts /etc/hosts\nmount --bind {here}/passwd /etc/passwd\n"
            f"mount -t tmpfs -o mode=0755 none /run\ncp -r {here}/keys /run/gate\n"
            f"chmod {mode} /run/gate/*\nchgrp {self.user} /run/gate/*\n"
            f"echo {self.name} > /proc/sys/kernel/hostname\n"
            f"{opened(sorted(NEEDED), stage)}cd {PLACE}\n"
        )

    def _rights(self) -> list[str]:
        if self.user == 0:
            return ["env"]
        user = str(self.user)
        none = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        return ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", *none]

    def poll(self) -> Ended | None:
        """How its container ended, once."""
        if self._process is None or self._process.poll() is None:
            return None
        name = self._containers[len(self.ended)]["name"]
        self.ended.append(Ended(name, self._process.returncode, (self.folder / name).read_text()))
        self._process = None
        return self.ended[-1]

    @property
    def over(self) -> bool:
        return len(self.ended) == len(self._containers)

    @property
    def running(self) -> bool:
        return self._process is not None

    def signal(self, number: int) -> None:
        """To pid 1 of its container."""
        if self._process is not None and self._process.poll() is None:
            path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            for pid in path.read_text().split():
                os.kill(int(pid), number)

    def remove(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)


def run(
    lab: Lab,
    job: Mapping[str, Any],
    folder: Path,
    *,
    user: int,
    env: Mapping[str, str],
    of_pods: Mapping[int, Mapping[str, str]],
) -> list[Pod]:
    """The whole Job, until all of its pods are over; `env` stands in for the manifest's own, `of_pods` by index."""
    keys = folder / "keys"
    keys.mkdir()
    for name in ("id", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gate", "-f", keys / name], check=True)
        (keys / f"{name}.pub").unlink()
    train = folder / "train.py"
    train.write_text(TRAIN)
    pods = [Pod(host, job, folder, user) for host in lab.hosts]
    for pod in pods:
        pod.make(pods, keys, [train, FAULTY / "sitecustomize.py"])
    try:
        _control(pods, {pod.index: {**env, **of_pods.get(pod.index, {})} for pod in pods})
    finally:
        for pod in pods:
            pod.remove()
    return pods


TRAIN = """
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
print(f"rank {dist.get_rank()} has trained with {int(ones)}", flush=True)
dist.destroy_process_group()  # left to the interpreter's end, gloo's threads now and then abort the process
"""


def _control(pods: Sequence[Pod], env: Mapping[int, Mapping[str, str]], within_s: float = 240.0) -> None:
    """Start what is to be started, and end all when one has failed."""
    for pod in pods:
        pod.start(env[pod.index])
    until, failed = time.monotonic() + within_s, False
    while any(pod.running for pod in pods):
        assert time.monotonic() < until, {pod.name: pod.ended for pod in pods}
        for pod in pods:
            ended = pod.poll()
            if ended and ended.code and not failed:
                failed, until = True, time.monotonic() + GRACE_S
                for other in pods:
                    other.signal(signal.SIGTERM)
            elif ended and not pod.over and not failed:
                pod.start(env[pod.index])
        time.sleep(POLL_S)
