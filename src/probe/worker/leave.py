"""What a run leaves in files of the user's choice: a line in the log, a report for whoever collects it.

Run by ``files.py``, in a process that may be killed at any time: a line is one write, a report appears by a rename.
Only regular files are written, and none through a symlink. Two writers at once are kept apart by a lock on the log
itself; one who finds that it was rotated meanwhile opens it anew. Standard library only, Python >= 3.9.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from contextlib import suppress

TYPE_CHECKING = False  # as in child.py: typing is 2 ms
if TYPE_CHECKING:
    from typing import Any, Callable

MOST_BYTES = 1 << 20
"""Of one log; with the one before it, health.log.1, twice that. A line takes 0.3 to 4 KiB."""
LOCK_S = 0.1
"""Another writer holds the lock for the time of one write."""
POLL_S = 0.002
FILE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""O_NONBLOCK: opening a FIFO that nobody reads ends at once."""


def main(child: Any, job: dict[str, dict[str, str]]) -> None:
    """Do what `job` says; one record for each, whose code is errno and 0 where all went well."""
    for key, arguments in job.items():
        _do(child, key, arguments)


def _do(child: Any, key: str, arguments: dict[str, str]) -> None:
    try:
        DEEDS[key](**arguments)
    except OSError as error:
        child.say(key, code=error.errno or -1, text=error.strerror or str(error))
    else:
        child.say(key, code=0)


def append(path: str, line: str, make_folder: bool = False) -> None:
    """Add one line to the log at `path`; one that would grow over its bound becomes ``<path>.1`` first."""
    if make_folder:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    data = line.encode("utf-8", "replace") + b"\n"
    until = time.monotonic() + LOCK_S
    while True:
        fd = _open_log(path)
        try:
            _lock(fd, until)
            if not _is_still(path, fd):  # rotated while we waited
                continue
            if os.fstat(fd).st_size + len(data) <= MOST_BYTES or not os.fstat(fd).st_size:
                _write(fd, data)
                return
            os.rename(path, path + ".1")
        finally:
            os.close(fd)


def _open_log(path: str) -> int:
    fd = os.open(path, FILE | os.O_APPEND, 0o640)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file of one name")
    return fd


def _lock(fd: int, until: float) -> None:
    while not _locked(fd):
        if time.monotonic() > until:
            raise OSError(errno.EAGAIN, "another writer holds it")
        time.sleep(POLL_S)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(path: str, fd: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _write(fd: int, data: bytes) -> None:
    """One append, whole or not at all: of a disk that is full nothing stays behind."""
    size = os.fstat(fd).st_size
    if os.write(fd, data) != len(data):
        os.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def replace(path: str, content: str) -> None:
    """Put `content` at `path`, by a rename, so that no reader sees half of it."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    new = f"{path}.new"  # one name: a killed run leaves one file. node_exporter reads *.prom, and not this one
    until = time.monotonic() + LOCK_S
    while True:
        fd = os.open(new, FILE, 0o644)
        try:
            _lock(fd, until)
            if not _is_still(new, fd):  # another run has put it in place meanwhile
                continue
            os.ftruncate(fd, 0)
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(content.encode("utf-8", "replace"))
                os.rename(new, path)
            except OSError:
                with suppress(OSError):
                    os.unlink(new)
                raise
            return
        finally:
            os.close(fd)


DEEDS: dict[str, Callable[..., None]] = {"append": append, "replace": replace}
