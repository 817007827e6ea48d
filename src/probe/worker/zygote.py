"""Imports torch once, then forks one child per GPU: eight imports cost 21 s of two cores, eight forks 2.8 s.

::

    probe --control socket--> zygote:  {"fork": token, "program", "job", "environment", "limit_s"} + [reply, stderr]
          <------------------          {"token", "pid"} + [pidfd]        then        {"token", "wait_status"}

It holds torch and nothing else, starts no thread and never touches CUDA: a process that did cannot be forked. It reaps
its children and passes their wait status on, because a pidfd tells that a process ended but not by which signal.
Standard library and torch only, Python >= 3.9: this runs under the interpreter that has torch.
"""

import ctypes
import json
import os
import re
import select
import socket
import sys
import traceback
from types import ModuleType
from typing import Any, NoReturn

CUDA_ERROR_NOT_INITIALIZED = 3
WHEEL = re.compile(r"nvidia_(?P<name>.*)_cu(?P<major>\d+)-(?P<version>[^-]+)\.dist-info$")


def main(child: Any, job: dict[str, Any]) -> None:
    control = socket.socket(fileno=job["control_fd"])
    control.set_inheritable(False)
    programs = _import(child, job["programs"])
    child.limit(0)  # a forked child that re-arms an inherited timer deadlocks: cancelled before any fork
    if programs is not None:
        Zygote(child, control, programs).serve()


def _import(child: Any, paths: "dict[str, str]") -> "dict[str, ModuleType] | None":
    """Import torch and the forked children's programs; say how that went."""
    elapsed = child.timed()
    child.step("import torch")
    try:
        import torch

        programs: dict[str, ModuleType] = {name: child.load(path) for name, path in paths.items()}
    except Exception as error:  # noqa: BLE001 - whatever an import of torch raises is the finding itself
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        words = traceback.format_exception_only(type(error), error)[-1].strip()
        child.say("import", code=1, text=words, elapsed_s=elapsed(), missing=missing)
        return None
    initialised = cuda_is_initialised()
    child.say(
        "import",
        code=2 if initialised else 0,
        text="importing torch initialised CUDA" if initialised else "",
        elapsed_s=elapsed(),
        version=torch.__version__,
        file=torch.__file__,
        threads=len(os.listdir("/proc/self/task")),
        **_wheels(torch),
    )
    return None if initialised else programs


def _wheels(torch: Any) -> dict[str, str]:
    """What lies beside torch: NCCL's and cuDNN's versions, and for which CUDA majors ("12 13" is one too many).

    By the names of the wheels alone: asking torch marks this process as one that cannot be forked (tried, 2.11).
    """
    names = os.listdir(os.path.dirname(os.path.dirname(torch.__file__)))
    wheels = [match for match in map(WHEEL.match, names) if match]
    found = {match["name"]: match["version"] for match in wheels if match["name"] in ("nccl", "cudnn")}
    return {**found, "cuda_majors": " ".join(sorted({match["major"] for match in wheels}))}


def cuda_is_initialised() -> bool:
    """Whether this process has called cuInit, asked of the libcuda that is already loaded, if one is."""
    try:
        libcuda = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return int(libcuda.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))) != CUDA_ERROR_NOT_INITIALIZED


class Zygote:
    """The fork server: one thread, one poll over its control socket and its children's pidfds."""

    def __init__(self, child: Any, control: socket.socket, programs: "dict[str, ModuleType]") -> None:
        self._child = child
        self._control = control
        self._programs = programs
        self._pid = os.getpid()
        self._tokens: dict[int, tuple[int, int]] = {}  # pidfd -> (pid, token)

    def serve(self) -> None:
        """Until the control socket closes; our children die with us."""
        while True:
            poller = select.poll()
            for fd in (self._control.fileno(), *self._tokens):
                poller.register(fd, select.POLLIN)
            for fd, _ in poller.poll():
                if fd in self._tokens:
                    self._report_end(fd)
                elif not self._take_request():
                    return

    def _take_request(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, 1 << 16, 2)
        if not message:
            return False
        request = json.loads(message)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_child(request, fds)
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._tokens[pidfd] = (pid, request["fork"])
        announcement = json.dumps({"token": request["fork"], "pid": pid}).encode()
        socket.send_fds(self._control, [announcement], [pidfd])
        return True

    def _become_child(self, request: dict[str, Any], fds: list[int]) -> NoReturn:
        try:
            self._child.tie_to(self._pid)  # not inherited by fork
            os.setsid()
            self._control.close()
            for pidfd in self._tokens:
                os.close(pidfd)
            reply_fd, stderr_fd = fds
            os.dup2(stderr_fd, 1)
            os.dup2(stderr_fd, 2)
            os.close(stderr_fd)
            os.environ.update(request["environment"])
            child = type(self._child)(reply_fd)
            child.limit(request["limit_s"])
            child.run(self._programs[request["program"]], request["job"])
        except BaseException:  # noqa: BLE001 - never back into the zygote's loop, in a second process
            traceback.print_exc()
        os._exit(71)  # child.run never returns: an exception came before it, and the zygote's loop must not run twice

    def _report_end(self, pidfd: int) -> None:
        pid, token = self._tokens.pop(pidfd)
        _, wait_status = os.waitpid(pid, 0)  # its pidfd is readable: it is a zombie, this does not wait
        os.close(pidfd)
        self._control.send(json.dumps({"token": token, "wait_status": wait_status}).encode())
