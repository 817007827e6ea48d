"""The compose file, brought up for real: what depends on the server waits for the health check."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tests.docker.engine import Engine
from tests.docker.image import REPOSITORY
from tests.system.command import missing

COMPOSE = Path("/usr/bin/docker-compose")  # Debian's; the engine of the tests is of the same age
UP_S = 120

pytestmark = pytest.mark.system


def test_a_dependant_starts_when_the_server_is_healthy(docker: Engine, image: str, tmp_path: Path) -> None:
    with up(docker, played(tmp_path, image)) as (code, said):
        assert code == 0, said
        server, client = (inspected(docker, name) for name in ("server", "client"))
        assert server["State"]["Health"]["Status"] == "healthy"
        assert server["State"]["Health"]["Log"][0]["End"][:19] <= client["State"]["StartedAt"][:19]
        assert (server["HostConfig"]["Init"], server["HostConfig"]["ShmSize"]) == (True, 1 << 30)
        assert "Health" not in client["State"]


def test_a_dependant_of_a_server_that_is_sick_never_starts(docker: Engine, image: str, tmp_path: Path) -> None:
    """Compose says which, and why it could not: the cause is in what it shows of the server."""
    with up(docker, played(tmp_path, image, ENABLE_SSH_CHECK="true")) as (code, said):
        assert code != 0
        assert "server" in said
        assert "unhealthy" in said
        assert inspected(docker, "server")["State"]["Health"]["Status"] == "unhealthy"
        assert "client" not in docker("ps", "--format", "{{.Names}}")


def played(folder: Path, image: str, **environment: str) -> Path:
    """The project's own file on a machine without GPUs, networks and patience."""
    file: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker" / "compose.yaml").read_text())
    server = file["services"]["server"]
    del server["deploy"], server["build"]
    server["healthcheck"] = {"interval": "1s", "start_period": "1ms"}
    server["environment"] |= environment
    for service in file["services"].values():
        service |= {"image": image, "command": ["sleep", "1000"], "network_mode": "none"}
    made = folder / "compose.yaml"
    made.write_text(json.dumps({"version": "3.9", **file}))  # YAML holds JSON
    return made


@contextmanager
def up(docker: Engine, file: Path) -> Iterator[tuple[int, str]]:
    """The exit code and the words of `up`; all that came of it is gone afterwards."""
    if not COMPOSE.exists():
        missing("docker-compose (apt-get install docker-compose)")
    argv = [str(COMPOSE), "--project-name", "tested", "--file", str(file)]
    try:
        ran = subprocess.run(
            [*argv, "up", "--detach"], env=docker.env, capture_output=True, text=True, timeout=UP_S, check=False
        )
        yield ran.returncode, ran.stdout + ran.stderr
    finally:
        subprocess.run([*argv, "down", "--timeout", "0"], env=docker.env, capture_output=True, check=True)


def inspected(docker: Engine, service: str) -> dict[str, Any]:
    name = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.service={service}").strip()
    (found,) = json.loads(docker("inspect", name))
    return dict(found)
