"""The image's own health check, run by a real engine: what it makes of a container, and what it leaves there."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from probe.worker.leave import MOST_BYTES
from tests.docker.engine import Container, Engine, lines
from tests.docker.services import JUPYTER_PID, SSHD_PID, has_jupyter, start_jupyter, start_sshd, stop
from tests.fakes.scenario import Scenario
from tests.system.command import missing

HOSTS = Path(__file__).parents[1] / "hosts"
OFTEN = ("--health-interval", "1s", "--health-start-period", "1ms", "--shm-size", "1g")
"""In seconds what takes minutes by the image's own figures; and no warning of Docker's 64 MiB of shared memory."""
PATH = "/usr/local/bin:/usr/sbin:/usr/bin"
WITH_TORCH = (
    *("--volume", f"{sys.prefix}:{sys.prefix}:ro", "--env", f"VIRTUAL_ENV={sys.prefix}"),
    *("--env", f"PATH={PATH}"),
)
AS_ROOT, AS_NOBODY = ("--user", "0"), ("--user", "65534")
DOCKER_KEEPS = 4096
CHECK = ("/usr/local/bin/probe", "check", "--exit-codes", "docker")
TRIES = 30
LOG = "/var/log/health.log"

pytestmark = pytest.mark.system

WAYS = {
    "root": (AS_ROOT, "healthy: CPU computed exactly"),
    "root with init, read-only": ((*AS_ROOT, "--init", "--read-only"), "degraded: /tmp is on a read-only file system"),
    "nobody with init": ((*AS_NOBODY, "--init"), "healthy: CPU computed exactly"),
    "nobody, read-only": ((*AS_NOBODY, "--read-only"), "degraded: /tmp is on a read-only file system"),
}


@pytest.mark.parametrize(("way", "said"), WAYS.values(), ids=WAYS.keys())
def test_a_container_that_works_becomes_healthy(docker: Engine, image: str, way: Sequence[str], said: str) -> None:
    """`starting` at first, then `healthy`; the first line says why, and nothing stays behind in the container.

    Where nothing can be written there is a warning, which torch would have run into; the check itself needs no file.
    """
    with docker.container(image, *OFTEN, *WITH_TORCH, *way) as container:
        before = processes(container)
        assert container.health["Status"] == "starting"
        first = container.becomes("healthy")["Log"][0]
        assert first["ExitCode"] == 0
        assert first["Output"].startswith(said)
        assert "exact in fp32, bf16, fp16" in first["Output"]
        assert len(first["Output"].encode()) <= DOCKER_KEEPS
        assert before == processes(container)


def test_torch_is_not_imported_at_each_check(docker: Engine, image: str) -> None:
    """The image's settings say so: the second check rests on the first, and says how long ago that was."""
    with docker.container(image, *OFTEN, *WITH_TORCH, *AS_ROOT) as container:
        container.becomes("healthy")
        again = container.run(*CHECK)
        assert "torch.import .build .tensor" in again
        assert " s ago: " in again


@pytest.mark.parametrize("user", [AS_ROOT, AS_NOBODY], ids=["root", "nobody"])
@pytest.mark.cc
def test_a_driver_turned_sick_is_unhealthy_until_it_is_mended(
    docker: Engine, image: str, host: "Host", user: Sequence[str]
) -> None:
    """Within the retries, with the cause and the remedy in the first line of what `docker inspect` shows."""
    with docker.container(image, *OFTEN, *host.options, *user) as container:
        assert lines(container.becomes("healthy"))[0].startswith("0 healthy: 1 x NVIDIA H100")
        host.turn("nvml.init = 18", "cuda.init = 803")
        health = container.becomes("unhealthy")
        assert health["FailingStreak"] == 3
        for line in lines(health)[-3:]:
            assert line.startswith("1 unhealthy: NVML 18: driver/library version mismatch")
            assert "reload the driver" in line
        host.turn()
        container.becomes("healthy")


@pytest.mark.cc
def test_a_driver_that_hangs_is_named_before_docker_loses_patience(docker: Engine, image: str, host: "Host") -> None:
    """The engine would end the check without a verdict (exit code -1); probe says first what hangs, and is gone."""
    with docker.container(image, *OFTEN, "--health-retries", "1", *host.options, *AS_ROOT) as container:
        container.becomes("healthy")
        before = processes(container)
        host.turn("nvml.init = hang")
        last = lines(container.becomes("unhealthy"))[-1]
        assert last.startswith("1 unhealthy: ")
        assert "NVML" in last
        host.turn()
        container.becomes("healthy")
        assert before == processes(container)


@pytest.mark.parametrize("enabled", ["true", "auto"])
def test_a_service_that_stops_is_unhealthy_until_it_is_started_again(docker: Engine, image: str, enabled: str) -> None:
    """Told to by `ENABLE_SSH_CHECK` and `ENABLE_JUPYTER_CHECK`, or, on auto, because an earlier check saw them run."""
    if not has_jupyter():
        missing("jupyter-server")
    switches = [word for name in ("SSH", "JUPYTER") for word in ("--env", f"ENABLE_{name}_CHECK={enabled}")]
    with docker.container(image, *OFTEN, *WITH_TORCH, *AS_ROOT, "--init", *switches) as container:
        start_sshd(container)
        start_jupyter(container)
        seen(container, "SSH-2.0-OpenSSH", "Jupyter ")
        container.becomes("healthy")
        stop(container, SSHD_PID, "TERM")
        assert_cause(container, ":22: connection refused")
        start_sshd(container)
        container.becomes("healthy")
        stop(container, JUPYTER_PID, "KILL" if enabled == "true" else "TERM")
        assert_cause(container, "Jupyter")
        start_jupyter(container)
        container.becomes("healthy")


def seen(container: Container, *words: str) -> None:
    """A check in the container passes with all of that; Jupyter takes a while to start."""
    said = ""
    for _ in range(TRIES):
        said = container.run(*CHECK, check=False)
        if said.startswith(("healthy", "degraded")) and all(word in said for word in words):
            return
    pytest.fail(f"not seen within {TRIES} checks: {said}")


def assert_cause(container: Container, word: str) -> None:
    health = container.becomes("unhealthy")
    assert health["FailingStreak"] == 3
    first = lines(health)[-1]
    assert first.startswith("1 unhealthy: ")
    assert word in first


def test_fifty_checks_leave_nothing_behind(docker: Engine, image: str) -> None:
    """No process, no zombie with a pid 1 that reaps nobody, no file more than after ten, none larger than its bound."""
    command = ("sh", "-c", f"exec {shlex.quote(sys.executable)} -c 'import time; time.sleep(1000)'")
    with docker.container(image, *WITH_TORCH, *AS_ROOT, "--shm-size", "1g", command=command) as container:
        fill = f"open({LOG!r}, 'w').write(('x' * 99 + chr(10)) * {(MOST_BYTES - 8000) // 100})"
        container.run(sys.executable, "-c", fill)
        before = processes(container)
        for _ in range(10):
            container.run(*CHECK)
        after_ten = files(docker, container)
        for _ in range(40):
            container.run(*CHECK)
        assert before == processes(container)
        after_all = files(docker, container)
        assert set(after_ten) | {f"{LOG}.1"} == set(after_all)
        for path, size in after_all.items():
            assert size <= (MOST_BYTES if path.startswith(LOG) else after_ten[path] + 16), path


def processes(container: Container) -> list[str]:
    """Those of the container, zombies too, but for the one that looks."""
    script = (
        "import os\n"
        "for pid in sorted(map(int, filter(str.isdigit, os.listdir('/proc')))):\n"
        "    if pid != os.getpid():\n"
        "        name, _, rest = open(f'/proc/{pid}/stat').read().rpartition(')')\n"
        "        print(pid, name.partition('(')[2], 'zombie' if rest.split()[0] == 'Z' else '')\n"
    )
    return container.run(python(), "-c", script).splitlines()


def files(docker: Engine, container: Container) -> dict[str, int]:
    """What there is in the container and not in its image, with the size."""
    changed = [line.partition(" ")[2] for line in docker("diff", container.name).splitlines()]
    script = (
        "import os, sys\nfor path in sys.argv[1:]:\n    os.path.isfile(path) and print(os.stat(path).st_size, path)"
    )
    said = container.run(python(), "-c", script, *changed).splitlines()
    return {path: int(size) for size, _, path in (line.partition(" ") for line in said)}


def python() -> str:
    """The image's."""
    return str(Path(sys.executable).resolve())


class Host:
    """A driver's libraries and one GPU, for a container: the device nodes that it opens are /dev/null's."""

    SEEN_AS = Path("/host")
    NODES = ("nvidiactl", "nvidia0", "nvidia-uvm", "nvidia-uvm-tools")

    def __init__(self, folder: Path, cache: Path) -> None:
        scenario = Scenario.load(HOSTS / "h100x1.toml")
        env = scenario.install(folder, cache, seen_as=self.SEEN_AS)
        self._values = folder / "values"
        self._healthy = self._values.read_text()
        nodes = [word for name in self.NODES for word in ("--device", f"/dev/null:/dev/{name}")]
        variables = [
            *("--env", f"LD_LIBRARY_PATH={env['LD_LIBRARY_PATH']}", "--env", f"FAKE_GPU_HOST={env['FAKE_GPU_HOST']}"),
            *("--env", f"PATH={self.SEEN_AS}/bin:{PATH}"),
            *("--env", "ENABLE_MODULE_CHECK=false"),  # /sys/module is the machine's: no container can fake it
        ]
        self.options = (*nodes, *variables, "--volume", f"{folder}:{self.SEEN_AS}:ro")

    def turn(self, *values: str) -> None:
        """From now on its driver answers so; without values: well."""
        self._values.write_text("\n".join([self._healthy, *values, ""]))


@pytest.fixture
def host(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path / "host"
    folder.mkdir()
    yield Host(folder, tmp_path_factory.mktemp("fakes"))
    shutil.rmtree(folder)
