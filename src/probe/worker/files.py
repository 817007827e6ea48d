"""Every file of a possibly sick host that can block for ever in the kernel when it is opened or asked about.

A thread per question, each with its own record, so that one hung device node or mount hides no other answer:
``open:<path>`` (code is errno, 0 opened), ``text:<path>``, ``statvfs:<path>``, ``disk:<path>``, ``exists:<path>``,
``kmsg:<path>`` and ``gpus:<path>``. What is asked about services is in ``services.py`` beside this file.

What is to be written when all is done comes as one JSON object on stdin, and is done by ``leave.py`` beside this file:
``{"append": {"path", "line"}, "replace": {"path", "content"}}``; its records are ``append`` and ``replace``.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

TYPE_CHECKING = False  # as in child.py: typing is 2 ms
if TYPE_CHECKING:
    from typing import Any, Callable

GPUS = "/proc/driver/nvidia/gpus"
KERNELS = ("/proc/", "/sys/")
MAX_TEXT_BYTES = 1 << 19
"""A Debian's CA certificates in one file are 220 KiB; as a line of JSON it must be under 1 MiB."""


def main(child: Any, job: dict[str, list[str]]) -> None:
    """`job` maps the kind of question to the paths it is asked of."""
    if job.keys() - QUESTIONS.keys():
        QUESTIONS.update(child.load(_sibling("services.py")).QUESTIONS)
    threads = [
        threading.Thread(target=_answer, args=(child, kind, path), daemon=True)
        for kind, paths in job.items()
        for path in paths
    ]
    threads.append(threading.Thread(target=_leave, args=(child,), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _sibling(name: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)


def _leave(child: Any) -> None:
    """Do what comes on stdin, once that is closed; in most runs nothing comes, and stdin is /dev/null."""
    if said := sys.stdin.buffer.read():
        child.load(_sibling("leave.py")).main(child, json.loads(said))


def _answer(child: Any, kind: str, path: str) -> None:
    elapsed = child.timed()
    key = f"{kind}:{path}"
    child.step(f"{kind} {path}", key)
    try:
        data = QUESTIONS[kind](path)
    except OSError as error:
        child.say(key, code=error.errno or -1, text=error.strerror or str(error), elapsed_s=elapsed())
    else:
        child.say(key, code=0, elapsed_s=elapsed(), **data)


def _open(path: str) -> dict[str, Any]:
    """Open for reading, which is where a lost device permission shows; the mode must allow writing too, for CUDA."""
    device = os.stat(path).st_rdev
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable for this user")
    return {"major": os.major(device), "minor": os.minor(device)}


def _text(path: str) -> dict[str, Any]:
    """A file of the kernel's is read as it is. One that a setting names may be a pipe or a device: these are none."""
    flags = 0 if path.startswith(KERNELS) else os.O_NONBLOCK | os.O_NOCTTY
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags), "rb") as file:
        if flags and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        return {"content": file.read(MAX_TEXT_BYTES).decode("utf-8", "replace")}


def _statvfs(path: str) -> dict[str, Any]:
    found = os.statvfs(path)
    return {
        "size_bytes": found.f_frsize * found.f_blocks,
        "free_bytes": found.f_frsize * found.f_bavail,
        "read_only": bool(found.f_flag & os.ST_RDONLY),
    }


def _disk(path: str) -> dict[str, Any]:
    """What there is room for in a folder, or where it would be made: in the nearest folder above that is there."""
    while not _is_there(path):
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return {
        **_statvfs(path),
        "at": path,
        "device": os.stat(path).st_dev,
        "inodes": found.f_files,
        "free_inodes": found.f_favail,
        "writable": os.access(path, os.W_OK | os.X_OK),
    }


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


KMSG = (1, 11)
"""The numbers of the kernel log's device (Documentation/admin-guide/devices.txt)."""
KMSG_S = 4.0
KMSG_BYTES = 64 << 20
"""The largest log buffer that is common is 16 MiB; 200,000 records take 0.3 s."""
RECORD_BYTES = 16384
"""More than the kernel ever gives at once (PRINTK_MESSAGE_MAX, 2 KiB; 8 KiB with what a driver adds)."""
KEPT_BYTES = 128 << 10
KEPT_OF_A_KIND = 4
"""Of one GPU's one XID, the last ones: thousands of an application's own do not push out the one that matters."""
MARKS = (
    b"NVRM: Xid ",
    b"fallen off the bus",
    b"NVRM: loading NVIDIA",
    b"NVRM: The NVIDIA GPU",
    b"Nvlink Core is being init",
)
"""What `probe.xids` reads; all else in the log is nobody's business."""


def _kmsg(path: str) -> dict[str, Any]:
    """The records of the kernel log that tell of NVIDIA's GPUs, and which of all records were there to be read."""
    if not _is_kernel_log(os.stat(path)):  # LXC and kind link it to the console, Podman binds /dev/null over it
        raise FileNotFoundError(errno.ENOENT, "no kernel log")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        reader = _Kmsg(fd)
        kinds: dict[bytes, deque[tuple[int, bytes]]] = {}
        for sequence, line in reader.records():
            kind = line.partition(b";")[2].partition(b", ")[0][:80]
            kinds.setdefault(kind, deque(maxlen=KEPT_OF_A_KIND)).append((sequence, line[:1024]))
    finally:
        os.close(fd)
    kept = sorted(record for records in kinds.values() for record in records)
    first, first_us = reader.first, reader.first_us
    while sum(len(line) for _, line in kept) > KEPT_BYTES:
        gone = kept.pop(0)[1]
        first, first_us = _number(gone, 1) + 1, _number(gone, 2)
    return {
        "lines": [line.decode("utf-8", "replace") for _, line in kept],
        "first": first,
        "first_s": first_us / 1e6,
        "last": reader.last,
        "complete": reader.complete,
        "booted_at": time.time() - time.clock_gettime(time.CLOCK_MONOTONIC),
        "now": time.time(),
    }


def _is_kernel_log(found: os.stat_result) -> bool:
    """A plain file is one that somebody kept."""
    device = os.major(found.st_rdev), os.minor(found.st_rdev)
    return stat.S_ISREG(found.st_mode) or (stat.S_ISCHR(found.st_mode) and device == KMSG)


def _number(line: bytes, field: int) -> int:
    """A number of a record's head (priority, sequence, microseconds); -1 where there is none."""
    head = line.partition(b";")[0].split(b",")
    text = head[field] if len(head) > field else b""
    return int(text) if text.isdigit() and len(text) < 20 else -1


class _Kmsg:
    """One reading of the log, from its oldest record to the newest."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.first = self.last = self.first_us = -1
        self.complete = False

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Sequence and line of each record with one of `MARKS` in it; what a driver adds below a line is left out."""
        rest = b""
        for data in self._reads():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                sequence = -1 if line[:1] in (b" ", b"") else _number(line, 1)
                if sequence < 0:
                    continue
                self.last = sequence
                if self.first < 0:
                    self.first, self.first_us = sequence, _number(line, 2)
                if any(mark in line for mark in MARKS):
                    yield self.last, line

    def _reads(self) -> Iterator[bytes]:
        until, left = time.monotonic() + KMSG_S, KMSG_BYTES
        while time.monotonic() < until and left > 0:
            try:
                data = os.read(self._fd, RECORD_BYTES)
            except BlockingIOError:
                data = b""
            except BrokenPipeError:  # it was overwritten just now; the next read gives the oldest that is left
                continue
            if not data:
                self.complete = True
                return
            left -= len(data)
            yield data


def _exists(path: str) -> dict[str, Any]:
    os.stat(path)
    return {}


def _gpus(folder: str) -> dict[str, Any]:
    """The GPUs as the kernel module lists them: PCI address and UUID, one file each."""
    return {"gpus": [_information(folder, name) for name in sorted(os.listdir(folder))]}


def _information(folder: str, name: str) -> dict[str, str]:
    text = _text(os.path.join(folder, name, "information"))["content"]
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {"bus_id": name, "uuid": fields.get("GPU UUID", "").strip(), "name": fields.get("Model", "").strip()}


QUESTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "open": _open,
    "text": _text,
    "statvfs": _statvfs,
    "disk": _disk,
    "exists": _exists,
    "kmsg": _kmsg,
    "gpus": _gpus,
}
