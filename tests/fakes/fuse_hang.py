"""File systems that do not answer, served from /dev/fuse. Root only.

::

    python tests/fakes/fuse_hang.py FOLDER [--unkillable]   mounts one there, prints "ready", then waits
        SIGTERM, or the end of its parent: unmounts, and releases whoever is stuck on it

Nobody ever reads from its /dev/fuse, so whoever touches FOLDER waits for the file system's first word: for ever, but
SIGKILL ends it. With ``--unkillable`` the first word is said and every request after it is taken and never answered:
then its caller is in state D, SIGKILL or not, as on a stuck driver or a dead NFS server, until the mount is gone.

The other kind is one file, for `tests.fakes.host`: what can be asked of it is answered, but opening it never returns.
"""

import argparse
import ctypes
import errno
import os
import select
import signal
import stat
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

MS_NOSUID, MS_NODEV, MNT_DETACH, PR_SET_PDEATHSIG = 2, 4, 2, 1
FORGET, GETATTR, OPEN, INIT, INTERRUPT, BATCH_FORGET = 2, 3, 14, 26, 36, 42
HEADER = struct.Struct("=IIQ24x")  # length, operation, unique; the node and who asks follow
REQUEST_BYTES = 1 << 17
FILE = stat.S_IFREG | 0o666

libc = ctypes.CDLL(None, use_errno=True)


def mount(target: Path, mode: int) -> int:
    """Mount with a root of the kind `mode`; returns the server's end, and once that is closed the mount is dead."""
    server = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={server},rootmode={stat.S_IFMT(mode):o},user_id=0,group_id=0,allow_other"
    if libc.mount(b"fuse_hang", os.fsencode(target), b"fuse", MS_NOSUID | MS_NODEV, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
    return server


def swallow(server: int) -> NoReturn:
    """Greet the kernel, then take every request and answer none."""
    while True:
        _length, operation, unique = HEADER.unpack_from(os.read(server, REQUEST_BYTES))
        if operation == INIT:
            _greet(server, unique)


def serve_files_that_never_open(servers: Mapping[int, bool], until: int) -> None:
    """Answer for files mounted with mode `FILE` until the pidfd `until` is readable.

    `servers` says of each whether SIGKILL ends a process that opens it (its call is given up when the kernel asks).
    """
    poll = select.poll()
    for fd in (*servers, until):
        poll.register(fd, select.POLLIN)
    while until not in (ready := [fd for fd, _ in poll.poll()]):
        for server in ready:
            _answer_for_file(server, killable=servers[server])


def _answer_for_file(server: int, *, killable: bool) -> None:
    request = os.read(server, REQUEST_BYTES)
    _length, operation, unique = HEADER.unpack_from(request)
    if operation == INIT:
        _greet(server, unique)
    elif operation == GETATTR:
        # fuse_attr_out: valid for 1 s; inode, size, blocks, 3 times, their fractions, mode, links, owner, device, block
        attributes = struct.pack("=QII6Q10I", 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, FILE, 1, 0, 0, 0, 4096, 0)
        _reply(server, unique, attributes)
    elif operation == INTERRUPT and killable:
        (given_up,) = struct.unpack_from("=Q", request, HEADER.size)
        _reply(server, given_up, error=errno.EINTR)
    elif operation not in {OPEN, INTERRUPT, FORGET, BATCH_FORGET}:
        _reply(server, unique, error=errno.ENOSYS)


def _greet(server: int, unique: int) -> None:
    # fuse_init_out of protocol 7.31: version, read-ahead, flags, background limits, largest write, the times' grain
    _reply(server, unique, struct.pack("=IIIIHHII32x", 7, 31, 65536, 0, 16, 12, 65536, 1))


def _reply(server: int, unique: int, body: bytes = b"", error: int = 0) -> None:
    os.write(server, struct.pack("=IiQ", 16 + len(body), -error, unique) + body)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mount a file system that never answers.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--unkillable", action="store_true", help="callers cannot be killed either")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    server = mount(options.folder, stat.S_IFDIR)
    if options.unkillable:
        threading.Thread(target=swallow, args=[server], daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    libc.umount2(os.fsencode(options.folder), MNT_DETACH)
    os._exit(0)  # closes the server's end, whatever its reader is doing


if __name__ == "__main__":
    main()
