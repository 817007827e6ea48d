"""A worker program that misbehaves in the way its job names. Real ones: segfaults, held GILs, orphans."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any


def main(child: Any, job: dict[str, Any]) -> None:
    child.step(f"being ugly: {job['way']}")
    globals()[job["way"]](child)


def behave(child: Any) -> None:
    child.say("answer", code=0, value=42)


def raise_(child: Any) -> None:
    raise ValueError("ugly on purpose")


def segfault(child: Any) -> None:
    ctypes.string_at(0)


def abort(child: Any) -> None:
    os.abort()


def hang(child: Any) -> None:
    signal.pause()


def hang_holding_the_gil(child: Any) -> None:
    ctypes.PyDLL(None).pause()


def ignore_term(child: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    hang(child)


def flood_reply(child: Any) -> None:
    for _ in range(200):
        child.say("answer", text="x" * 50_000)


def flood_one_line(child: Any) -> None:
    child.say("answer", text="x" * 10_000_000)


def flood_stdout(child: Any) -> None:
    for _ in range(160):
        os.write(1, b"x" * 65_535 + b"\n")
    behave(child)


def flood_stderr(child: Any) -> None:
    for _ in range(160):
        os.write(2, b"y" * 65_535 + b"\n")
    os.write(2, b"the last word\n")


def leave_silently(child: Any) -> None:
    os._exit(7)


def print_from_c(child: Any) -> None:
    libc = ctypes.CDLL(None)
    libc.puts(b"NCCL version 2.28.9+cuda13.0")
    libc.fflush(None)
    behave(child)


def print_garbage(child: Any) -> None:
    os.write(child.reply_fd, b'\xff\xfe not json\n{"key": 3}\n[]\nnull\n\n')
    behave(child)


def leave_a_setsid_grandchild(child: Any) -> None:
    ready, told = os.pipe()
    subprocess.Popen(
        [sys.executable, "-c", f"import os, signal; os.write({told}, b'.'); signal.pause()"],
        start_new_session=True,
        pass_fds=(told,),
    )
    os.read(ready, 1)
    behave(child)


def be_killed(child: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def outlive_its_limit(child: Any) -> None:
    time.sleep(600)
