"""Writes to a descriptor without ever waiting for a reader that does not read."""

import os
import select
import stat
import time

TYPE_CHECKING = False  # typing's own would be an import
if TYPE_CHECKING:
    from collections.abc import Sequence

PIPE_BUF = select.PIPE_BUF
NPD_BYTES = 80
"""What node-problem-detector keeps of a message."""


def asked_format(argv: "Sequence[str]") -> str:
    """What stdout is to be in, as far as the command line tells before it is parsed."""
    form = "text"
    for at, word in enumerate(argv):
        if word == "--format" and at + 1 < len(argv):
            form = argv[at + 1]
        elif word.startswith("--format="):
            form = word.partition("=")[2]
        elif word == "--output" or word.startswith("--output="):  # then the format is the file's
            return "text"
    return form


def instead_of_report(form: str, words: str) -> bytes:
    """One line of stdout for a caller that gets no report; empty where its format has no place for it."""
    if form == "nagios":
        return f"PROBE UNKNOWN - {words.replace('|', '/')}\n".encode("utf-8", "replace")
    if form == "npd":
        return words.encode("utf-8", "replace")[: NPD_BYTES - 1] + b"\n"
    return f"{words}\n".encode("utf-8", "replace") if form == "text" else b""


def write(fd: int, data: bytes, until: float) -> bool:
    """Write all of `data`, giving up at the `time.monotonic` value `until`; False when not all of it went out.

    A pipe that polls writable takes PIPE_BUF bytes at once (pipe(7)), so pieces of that size never block. The
    descriptor is left as it is: O_NONBLOCK would be set for everybody who shares it.
    """
    try:
        waits = not stat.S_ISREG(os.fstat(fd).st_mode)
        poller = select.poll()
        if waits:
            poller.register(fd, select.POLLOUT)
        rest = memoryview(data)
        while rest:
            left_s = until - time.monotonic()
            if waits and (left_s <= 0 or not poller.poll(left_s * 1000)):
                return False
            rest = rest[os.write(fd, rest[:PIPE_BUF]) :]
    except OSError:  # closed, or nobody reads any more: there is no one to tell
        return False
    return True
