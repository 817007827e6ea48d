"""Writes to a descriptor without ever waiting for a reader that does not read."""

import os
import select
import stat
import time

PIPE_BUF = select.PIPE_BUF


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
