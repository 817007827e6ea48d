"""Runs a command on a machine whose /dev/shm is a mount that never answers. Root only.

::

    python -S -E bench/dead_mount.py COMMAND
        |  a mount namespace of its own; a FUSE file system over /dev/shm, with a server that reads no request
        |  the server's end is held aside, by an orphan that ends with the command
        v
    COMMAND, with this process's pid; SIGKILL ends whoever waits for the mount
"""

import os
import select
import stat
import sys
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":  # started as a file: the repository is what it imports from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tests.fakes import fuse_hang

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18
DEVICE = Path("/dev/fuse")
WHERE = Path("/dev/shm")  # noqa: S108 - covered, not written to


def main(argv: list[str]) -> NoReturn:
    libc = fuse_hang.libc
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", b"", MS_REC | MS_PRIVATE, None):
        sys.exit("dead_mount.py: no mount namespace to be had")
    if missing := not DEVICE.exists():  # the /dev of a fake host has none
        os.mknod(DEVICE, stat.S_IFCHR | 0o600, os.makedev(10, 229))  # Documentation/admin-guide/devices.txt
    hold_aside(fuse_hang.mount(WHERE, stat.S_IFDIR))
    if missing:
        DEVICE.unlink()
    os.execvp(argv[0], argv)  # noqa: S606 - the command that this one was asked to run


def hold_aside(server: int) -> None:
    """Keep the server's end open in a process that is no child of the command and ends with it."""
    command_ends = os.pidfd_open(os.getpid())
    if middle := os.fork():
        os.waitpid(middle, 0)
        os.close(server)
        os.close(command_ends)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    nothing = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    select.select([command_ends], [], [])
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
