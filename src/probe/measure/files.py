"""Writes a result so that whoever reads the file finds the old one or the new one, whole."""

import os
import stat

from probe.config import UsageError

STDOUT = "-"


def check_writable(path: str, flag: str) -> None:
    """Raise UsageError now, and not after a minute of measuring, where `path` will not be written."""
    if path == STDOUT:
        return
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder", flag, "a file")
    if not os.path.isdir(folder):
        raise UsageError(f"there is no folder {folder}", flag)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"nothing can be written in {folder}", flag)


def replace(path: str, content: bytes) -> None:
    """By rename, in the file's own folder; what is no regular file (a pipe, /dev/null) is written to as it is."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "wb") as device:
            device.write(content)
        return
    scratch = f"{path}.{os.getpid()}.new"
    try:
        with open(scratch, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(scratch, path)
    except OSError:
        if os.path.exists(scratch):
            os.unlink(scratch)
        raise
