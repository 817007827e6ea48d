"""A Docker engine of the tests' own: everything that it has lies in one folder, and all of it goes when it ends.

::

    pytest -> dockerd, in a mount namespace of its own -> containerd
                 | overlay2, else vfs, on a tmpfs           '-> a shim, an orphan of pid 1, and its container
                 '<- docker (this machine's client), by the socket

No network is made: its containers have loopback only. What is mounted goes with the last process. A killed pytest takes
the engine along, by a signal that lets it end its containers first.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DOCKERD = "/usr/sbin/dockerd"
CLIENT = "/usr/bin/docker"  # of the same package; another one that comes first on PATH may be too new for it
DRIVERS = ("overlay2", "vfs")
START_S = 30.0
STOP_S = 20.0
GRACE_S = 2.0
"""With no container left it has nothing more to save, and yet may take 20 s to go (seen with 20.10)."""
CALL_S = 120.0
STATUS_S = 90.0
ENTER = 'mount -t tmpfs -o size=4g none "$1" && shift && exec "$@"'  # images are made and removed in a moment
NO_FILES = "nofile=1024:1024"  # where this machine may not raise limits, a container cannot either


class NoEngine(Exception):
    """None runs here; why, in the engine's own words."""


class Engine:
    """The client, as a call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "DOCKER_CONFIG": str(folder / "config"),
            "DOCKER_HOST": f"unix://{folder}/socket",
            "DOCKER_BUILDKIT": "1",
        }

    def __call__(self, *argv: str, check: bool = True) -> str:
        """What the client says; an answer that is no success fails the test."""
        code, out, err = self.call(*argv)
        assert code == 0 or not check, f"docker {' '.join(argv)}: exit {code}\n{out}{err}"
        return out

    def call(self, *argv: str) -> tuple[int, str, str]:
        ran = subprocess.run([CLIENT, *argv], env=self.env, capture_output=True, text=True, timeout=CALL_S, check=False)
        return ran.returncode, ran.stdout, ran.stderr

    @contextmanager
    def container(self, image: str, *options: str, command: Sequence[str] = ("sleep", "1000")) -> "Iterator[Container]":
        name = self("run", "--detach", "--network", "none", *options, image, *command).strip()
        try:
            yield Container(self, name)
        finally:
            self("rm", "--force", "--volumes", name, check=False)


class Container:
    def __init__(self, engine: Engine, name: str) -> None:
        self._docker = engine
        self.name = name

    def run(self, *argv: str, user: str = "0", check: bool = True) -> str:
        """A command in it, as `docker exec` runs it."""
        return self._docker("exec", "--user", user, self.name, *argv, check=check)

    def start(self, *argv: str) -> None:
        """A command in it that stays."""
        self._docker("exec", "--detach", "--user", "0", self.name, *argv)

    @property
    def health(self) -> dict[str, Any]:
        """What the engine knows: Status, FailingStreak, Log."""
        found: dict[str, Any] = json.loads(self._docker("inspect", "--format", "{{json .State.Health}}", self.name))
        return found

    def becomes(self, status: str, within_s: float = STATUS_S) -> dict[str, Any]:
        """The health of the container once its status is that; asked again whenever the engine says that it changed."""
        until = time.monotonic() + within_s
        with self._events() as stream:
            while (health := self.health)["Status"] != status:
                changed, _, _ = select.select([stream], [], [], max(0.0, until - time.monotonic()))
                assert changed, f"not {status} within {within_s:g} s: {lines(self.health)}"
                os.read(stream, 4096)
        return health

    @contextmanager
    def _events(self) -> Iterator[int]:
        """From the first on, so that none is missed between asking and listening."""
        what = ("--since", "0", "--filter", f"container={self.name}", "--filter", "event=health_status")
        with subprocess.Popen([CLIENT, "events", *what], env=self._docker.env, stdout=subprocess.PIPE) as listener:
            assert listener.stdout
            try:
                yield listener.stdout.fileno()
            finally:
                listener.kill()


def lines(health: dict[str, Any]) -> list[str]:
    """The first line of each health check that the engine remembers, with its exit code."""
    return [f"{entry['ExitCode']} {entry['Output'].partition(chr(10))[0]}" for entry in health["Log"]]


@contextmanager
def running() -> Iterator[Engine]:
    """An engine that runs; raises `NoEngine` where none can."""
    for program in (DOCKERD, CLIENT):
        if not Path(program).exists():
            raise NoEngine(f"no {program} (apt-get install docker.io)")
    said = ""
    for driver in DRIVERS:
        folder = Path(tempfile.mkdtemp(prefix="probe-docker-"))  # short: a socket's path has 108 bytes
        process = _start(folder, driver)
        engine = Engine(folder)
        try:
            if _answers(engine, process):
                yield engine
                return
            said = (folder / "log").read_text()[-2000:]
        finally:
            _stop(engine, process)
    raise NoEngine(said)


def _start(folder: Path, driver: str) -> "subprocess.Popen[bytes]":
    settings = folder / "daemon.json"
    settings.write_text(json.dumps({"deprecated-key-path": str(folder / "key.json")}))
    (folder / "data").mkdir()
    argv = [
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", str(folder / "data")),
        *("setpriv", "--pdeathsig", "TERM", "--", DOCKERD, "--config-file", str(settings)),
        *("--storage-driver", driver, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--host", f"unix://{folder}/socket", "--pidfile", str(folder / "pid"), "--default-ulimit", NO_FILES),
        *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def _answers(engine: Engine, process: "subprocess.Popen[bytes]") -> bool:
    """Whether it does so in time; a driver that this machine has not ends the process."""
    until = time.monotonic() + START_S
    pidfd = os.pidfd_open(process.pid)
    try:
        while time.monotonic() < until and not select.select([pidfd], [], [], 0.1)[0]:
            if engine.call("version")[0] == 0:
                return True
    finally:
        os.close(pidfd)
    return False


def _stop(engine: Engine, process: "subprocess.Popen[bytes]") -> None:
    """End it and whatever it started; raise where something of it does not go."""
    if process.poll() is None:
        containers = engine.call("ps", "--all", "--quiet")[1].split()
        engine.call("rm", "--force", *containers)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    for pid in [*belonging(engine.folder), process.pid]:
        _end(pid)
    process.wait(STOP_S)
    shutil.rmtree(engine.folder)
    assert [] == belonging(engine.folder)


def belonging(folder: Path) -> list[int]:
    """The processes that name the folder in their arguments: the engine, containerd, its shims."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):  # noqa: PTH208 - names, many
        with suppress(OSError):
            if os.fsencode(folder) in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid():
                found.append(pid)
    return found


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], STOP_S)
        finally:
            os.close(pidfd)
