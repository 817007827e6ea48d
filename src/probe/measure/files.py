"""Writes a result so that whoever reads the file finds the old one or the new one, whole."""

import errno
import os
import stat
import tempfile
from collections.abc import Mapping

from probe.config import UsageError
from probe.output import write

STDOUT = "-"


def check(written: Mapping[str, str | None], read: str | None) -> None:
    """Raise UsageError where a flag's file will not be written; `written`: by flag, `read`: that of ``--compare``."""
    places: dict[str, str] = {}
    for flag, path in [*written.items(), ("--compare", read)]:
        if path == "" or (path == STDOUT and flag != "--json"):
            raise UsageError(f"{path!r} is no file", flag, "a file's path")
    for flag, path in written.items():
        if not path:
            continue
        check_writable(path, flag)
        if not _is_special(path) and (other := places.setdefault(os.path.realpath(path), flag)) != flag:
            raise UsageError(f"{path} is the file of {other} too", flag, "a file of its own")


def check_writable(path: str, flag: str) -> None:
    """Raise UsageError now, and not after a minute of measuring, where `path` will not be written."""
    if path == STDOUT:
        return
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder", flag, "a file")
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise UsageError(f"nothing can be written to {path}", flag)
        return
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}", flag)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"nothing can be written in {folder}", flag)


def _is_special(path: str) -> bool:
    """A pipe, a terminal, /dev/null: there is nothing to replace, and it may make its writer wait."""
    return os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)


def replace(path: str, content: bytes, until: float) -> None:
    """By rename, in the file's own folder; into what is no regular file, for as long as `until` (`time.monotonic`)."""
    if _is_special(path):  # not by its real path: that of /dev/fd/63 is none
        _pour(path, content, until)
        return
    path = os.path.realpath(path)
    descriptor, scratch = tempfile.mkstemp(
        prefix=f"{os.path.basename(path)}.", suffix=".new", dir=os.path.dirname(path)
    )
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, _mode(path))
            os.fsync(descriptor)
        os.rename(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def _mode(path: str) -> int:
    """That of the file which is replaced; of a new one, what anybody's new file gets."""
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _pour(path: str, content: bytes, until: float) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads it") from None
        raise
    try:
        if not write(descriptor, content, until):
            raise OSError(errno.EPIPE, "its reader did not take all of it")
    finally:
        os.close(descriptor)
