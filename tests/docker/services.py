"""Starts and stops, in a container, what its health check is told to look after."""

import shlex
import sys
from pathlib import Path

from tests.docker.engine import Container

SSHD_PID = "/run/sshd.pid"
JUPYTER_PID = "/run/jupyter.pid"
JUPYTER = f"{shlex.quote(sys.prefix)}/bin/python -m jupyter_server --allow-root --no-browser --ServerApp.ip=127.0.0.1"


def has_jupyter() -> bool:
    return Path(sys.prefix, "bin", "jupyter-server").exists()


def start_sshd(container: Container) -> None:
    """Debian's, with the host keys that the container has, or new ones."""
    container.run("ssh-keygen", "-q", "-A")
    container.run("/usr/sbin/sshd")


def start_jupyter(container: Container) -> None:
    """The tests' own, as root's; it outlives the command that starts it."""
    container.run("mkdir", "-p", "/root")
    container.start("sh", "-c", f"echo $$ > {JUPYTER_PID}; exec {JUPYTER}")


def stop(container: Container, pid_file: str, signal: str) -> None:
    container.run("sh", "-c", f"kill -s {signal} $(cat {pid_file})")
