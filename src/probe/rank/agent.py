"""The gate's agent: one small program on each host, told what to do by lines on stdin, telling what happened on stdout.

::

    controller == lines == agent (subreaper) --+-- probe check --profile node
                                               +-- warm importer (worker/zygote.py): torch, once
                                                     +-- rank, rank ...           forked for each round
                                                     +-- torchrun -- rank ...     the world

    it kills all that it started and leaves at the end of its input, when no tick came for `SILENT_S`, at its absolute
    deadline, or when nobody reads what it says

A line in is ``{"verb": ...}``, one of `VERBS` with exactly its fields: there is no verb that runs what it is told. A
line out is ``{"say": ...}``, one of the messages in `probe.cluster.protocol`. Standard library only, and of probe only
what is. Over 300 lines because all that a host may be asked to do stands here, beside the one loop that bounds it.
"""

import errno
import faulthandler
import ipaddress
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from probe import __version__
from probe.output import write
from probe.rank import facts
from probe.worker.launch import ONE_THREAD
from probe.worker.parent import (
    Children,
    End,
    Event,
    Process,
    become_subreaper,
    bootstrap,
    children_of_this_process,
    lingering,
)

PROTOCOL = 1
FOLDER = os.path.dirname(os.path.abspath(__file__))
SILENT_S = 10.0
"""The controller ticks every 2 s: after five that did not come it is gone, or cannot be reached any more."""
DEADLINE_S = 600.0
"""Until the controller has said how long it may take."""
TEARDOWN_S = 2.0
"""A killed CUDA process with 42 GB allocated took 0.2 s to go; eight of them on a busy host get more."""
SWEEP_S = 0.5
SAY_S = 5.0
MAX_LINE_BYTES = 1 << 20
MAX_REPORT_BYTES = 900_000
"""Of a node's report, so that with its envelope it stays under the limit of a line."""
TAIL_CHARACTERS = 2000
MOST_RANKS = 64
"""On one host; the largest nodes have 16 GPUs."""
BACKLOG = 4096
FRAMED = (b"\x02", b"\x03\n")
"""What stands around a line where whoever carries it adds line ends of their own, as srun does: JSON holds neither."""

NAME = re.compile(r"[\w.:@-]{0,15}")
"""Of an interface (IFNAMSIZ), or empty."""
HEX = re.compile(r"[0-9a-f]{1,64}")


def _address(value: Any) -> bool:
    try:
        return bool(isinstance(value, str) and ipaddress.ip_address(value))
    except ValueError:
        return False


def _whole(low: int, high: int) -> "Callable[[Any], bool]":
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 86400


def _word(pattern: "re.Pattern[str]") -> "Callable[[Any], bool]":
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 16 and all(map(_whole(8, 1 << 35), value))


_COUNT = _whole(0, 1 << 31)
_PORT = _whole(0, 65535)
_TASK: "dict[str, Callable[[Any], bool]]" = {
    "job": _COUNT,
    "backend": _word(re.compile("nccl|gloo")),
    "ifname": _word(NAME),
    "nproc": _whole(1, MOST_RANKS),
    "seed": _COUNT,
    "timeout_s": _seconds,
    "limit_s": _seconds,
}
_TESTING = {**_TASK, "sizes_bytes": _sizes, "rates_bytes": _sizes}
_PLACE: "dict[str, Callable[[Any], bool]]" = {
    "first_rank": _COUNT,
    "ranks": _whole(1, 1 << 20),
    "first_local": _whole(0, MOST_RANKS),
    "locals": _whole(1, MOST_RANKS),
    "address": _address,
    "port": _PORT,
}
VERBS: "dict[str, dict[str, Callable[[Any], bool]]]" = {
    "hello": {"deadline_s": _seconds, "ifname": _word(NAME)},
    "tick": {"n": _COUNT},
    "warm": {},
    "node": {"job": _COUNT, "budget_s": _seconds},
    "listen": {"job": _COUNT, "address": _address, "port": _PORT},
    "connect": {"job": _COUNT, "address": _address, "port": _PORT, "timeout_s": _seconds},
    "world": {
        **_TESTING,
        "run_id": _word(HEX),
        "nodes": _whole(1, 1 << 16),
        "address": _address,
        "port": _PORT,
        "is_host": lambda value: isinstance(value, bool),
        "local_address": _address,
        "join_timeout_s": _whole(1, 86400),
    },
    "round": {**_TESTING, **_PLACE},
    "measure": {**_TASK, **_PLACE, "share_s": _seconds},
    "cancel": {"job": _COUNT},
    "stop": {},
}
"""Each verb with its fields and what they may be. All fields must be there and no others."""


def parse(line: bytes) -> "dict[str, Any]":
    """One command; raise ValueError naming what is wrong with it."""
    command = json.loads(line)
    if not isinstance(command, dict) or command.get("verb") not in VERBS:
        raise ValueError("no such verb")
    fields = VERBS[command["verb"]]
    given = command.keys() - {"verb", "to"}
    if given != fields.keys():
        raise ValueError(f"{command['verb']}: fields {', '.join(sorted(given ^ fields.keys()))}")
    for name, right in fields.items():
        if not right(command[name]):
            raise ValueError(f"{command['verb']}: {name} is {str(command[name])[:60]!r}")
    return command


class Agent:
    def __init__(self, name: str, address: str, frame: "tuple[bytes, bytes]") -> None:
        self.name = name
        self.frame = frame
        self.given_address = self.address = address
        self.children = Children()
        self.zygote: Process | None = None
        self.jobs: dict[Process, tuple[int, str]] = {}
        """Of each process at work: for which job, and what it is: check, torchrun, or its local rank."""
        self.limits: dict[int, float] = {}
        self.listeners: dict[int, socket.socket] = {}
        self.connecting: dict[int, tuple[int, socket.socket, float, float]] = {}
        """By descriptor: for which job, the socket, until when, since when."""
        self.bootstrap: list[str] = []
        self.deadline_at = time.monotonic() + DEADLINE_S
        self.ticked_at = time.monotonic()
        self.swept_at = 0.0
        self.input = bytearray()
        self.leaving = False

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        os.set_blocking(0, False)
        self.say("ready", version=__version__, protocol=PROTOCOL, name=self.name, pid=os.getpid())
        while True:
            poller = select.poll()
            poller.register(0, select.POLLIN)
            poller.register(self.children.fd, select.POLLIN)
            for fd in self.connecting:
                poller.register(fd, select.POLLOUT)
            ready = dict(poller.poll(min(SWEEP_S, self._next_s()) * 1000))
            if 0 in ready:
                self._hear()
            for event in self.children.poll():
                self._happened(event)
            for fd in list(self.connecting):
                self._connected(fd, fd in ready)
            self._keep_time()

    def _next_s(self) -> float:
        until = min([self.deadline_at, *self.limits.values(), *(entry[2] for entry in self.connecting.values())])
        return max(0.0, until - time.monotonic())

    def _keep_time(self) -> None:
        now = time.monotonic()
        if now >= self.deadline_at:
            self.leave("deadline")
        if now - self.ticked_at > SILENT_S:
            self.leave("no tick")
        for job in [job for job, at in self.limits.items() if now >= at]:
            self._cancel({"job": job})
        if now - self.swept_at > SWEEP_S:
            self._sweep()

    def _hear(self) -> None:
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.leave("end of input")
        self.input += data
        *lines, self.input = self.input.split(b"\n")
        if len(self.input) > MAX_LINE_BYTES:
            self.leave("a line is too long")
        for line in lines:
            self._obey(bytes(line))

    def _obey(self, line: bytes) -> None:
        self.ticked_at = time.monotonic()
        try:
            command = parse(line)
        except ValueError as error:
            self.say("refused", text=str(error)[:200])
            return
        if self.name in command.get("to", [self.name]):
            getattr(self, "_" + command["verb"])(command)

    def say(self, what: str, **fields: Any) -> None:
        line = self.frame[0] + json.dumps({"say": what, **fields}).encode() + self.frame[1]
        if not write(1, line, time.monotonic() + SAY_S) and not self.leaving:
            self.leave("nobody reads")

    def leave(self, why: str) -> NoReturn:
        """Kill all, say what would not go, and leave; bounded, whatever hangs."""
        if not self.leaving:
            self.leaving = True
            self.children.reap(TEARDOWN_S)
            left = [survivor._asdict() for survivor in self.children.survivors()]
            self.say("bye", why=why, left=left)
        os._exit(0)

    # -- verbs --------------------------------------------------------------------------------------------------------

    def _hello(self, command: "dict[str, Any]") -> None:
        self.deadline_at = time.monotonic() + command["deadline_s"]
        # should this very loop hang: its children are tied to it and end with it
        resort = os.fdopen(os.memfd_create("probe-last-resort"), "w")
        faulthandler.dump_traceback_later(command["deadline_s"] + 2 * TEARDOWN_S, exit=True, file=resort)
        self._resort = resort
        found = facts.gather(command["ifname"], self.given_address)
        self.address = found["address"]
        self.say("hello", facts=found)

    def _tick(self, command: "dict[str, Any]") -> None:
        self.say("tock", n=command["n"], clock_s=time.time())

    def _warm(self, _command: "dict[str, Any]") -> None:
        """Start the importer under the interpreter that has torch; its answer comes as a record of job 0."""
        from probe import torchfile

        found = torchfile.find(os.environ.get("PROBE_PYTHON") or torchfile.AUTO, os.environ)
        site = found.site
        if site is None:
            self.say("torch", version="", python="", text=f"no torch (looked in {', '.join(found.looked)})"[:500])
            return
        version = site.python_version or (3, 9)
        self.bootstrap = bootstrap("child", version)
        self.say("torch", version=site.version, python=site.python, cuda=site.cuda or "", text="")
        try:
            self.zygote = self.children.start(
                "zygote",
                {"programs": {name: os.path.join(FOLDER, f"{name}.py") for name in ("collective", "measure")}},
                worker="importer",
                python=site.python,
                version=version,
                environment={**ONE_THREAD, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "CUDA_CACHE_DISABLE": "1"},
            )
            self.jobs[self.zygote] = (0, "importer")
        except OSError as error:
            self.say("end", job=0, process="importer", text=f"cannot be started: {error}")

    def _node(self, command: "dict[str, Any]") -> None:
        argv = [sys.executable, "-P", "-m", "probe", "check", "--profile", "node", "--format", "json", "--log", "off"]
        argv += ["--exit-codes", "shell", "--budget", f"{command['budget_s']:.3f}s"]
        self._foreign(command["job"], "check", argv, command["budget_s"] + 2.0)

    def _foreign(self, job: int, name: str, argv: "list[str]", limit_s: float) -> None:
        try:
            process = self.children.start_foreign(argv, worker=name)
        except OSError as error:
            self.say("end", job=job, process=name, text=f"cannot be started: {error}")
            return
        self.jobs[process] = (job, name)
        self.limits[job] = time.monotonic() + limit_s

    def _listen(self, command: "dict[str, Any]") -> None:
        """Hold a port of the rendezvous until the world starts: who can reach it is known before torchrun waits."""
        began = time.monotonic()
        try:
            listener = _listening(command["address"], command["port"])
        except OSError as error:
            self._reached(command["job"], 0, error.strerror or str(error), began)
            return
        self.listeners[command["job"]] = listener
        self._reached(command["job"], listener.getsockname()[1], "", began)

    def _connect(self, command: "dict[str, Any]") -> None:
        """Begin to connect; one that fails at once, for want of a route, says so like one that fails later."""
        began = time.monotonic()
        try:
            connection = _connecting(command["address"], command["port"])
        except OSError as error:
            self._reached(command["job"], 0, error.strerror or str(error), began)
            return
        self.connecting[connection.fileno()] = (command["job"], connection, began + command["timeout_s"], began)

    def _connected(self, fd: int, ready: bool) -> None:
        job, connection, until, began = self.connecting[fd]
        if not ready and time.monotonic() < until:
            return
        port, text = _peer(connection) if ready else (0, os.strerror(errno.ETIMEDOUT))
        del self.connecting[fd]
        connection.close()
        self._reached(job, port, text, began)

    def _reached(self, job: int, port: int, text: str, began: float) -> None:
        self.say("reached", job=job, port=port, text=text, elapsed_s=round(time.monotonic() - began, 6))

    def _world(self, command: "dict[str, Any]") -> None:
        job = {
            **self._task(command),
            "task": "torchrun",
            "bootstrap": self.bootstrap,
            "endpoint": _endpoint(command["address"], command["port"]),
            **{name: command[name] for name in ("run_id", "nodes", "is_host", "local_address", "join_timeout_s")},
        }
        for listener in self.listeners.values():
            listener.close()
        self.listeners.clear()
        self._fork(command, "collective", "torchrun", job, command["local_address"])

    def _round(self, command: "dict[str, Any]") -> None:
        self._fork_ranks(command, "collective", self._task(command))

    def _measure(self, command: "dict[str, Any]") -> None:
        self._fork_ranks(command, "measure", {**self._task(command), "share_s": command["share_s"]})

    @staticmethod
    def _task(command: "dict[str, Any]") -> "dict[str, Any]":
        return {name: command[name] for name in _TESTING if name in command and name not in ("job", "ifname")}

    def _fork_ranks(self, command: "dict[str, Any]", program: str, task: "dict[str, Any]") -> None:
        for local in range(command["first_local"], command["first_local"] + command["locals"]):
            place = {name: command[name] for name in ("ranks", "address", "port")}
            job = {**task, **place, "task": "rank", "rank": command["first_rank"] + local, "local": local}
            self._fork(command, program, str(local), job, self.address)

    def _fork(self, command: "dict[str, Any]", program: str, name: str, job: "dict[str, Any]", address: str) -> None:
        if self.zygote is None:
            self.say("end", job=command["job"], process=name, text="torch is not there")
            return
        process = self.children.fork(
            self.zygote,
            job,
            worker=name,
            target=str(command["job"]),
            limit_s=command["limit_s"],
            environment=steering(command, address),
            program=program,
        )
        self.jobs[process] = (command["job"], name)
        self.limits[command["job"]] = time.monotonic() + command["limit_s"] + 0.5

    def _cancel(self, command: "dict[str, Any]") -> None:
        self.limits.pop(command["job"], None)
        if (listener := self.listeners.pop(command["job"], None)) is not None:
            listener.close()
        for process, (job, name) in self.jobs.items():
            if job == command["job"] and name != "importer":
                for pid in [process.pid, *_children_of(process.pid)] if process.pid else []:
                    self._show(job, name, pid)
                process.kill()

    def _show(self, job: int, name: str, pid: int) -> None:
        """What one process does that is about to be killed: stopped (T), stuck in the kernel (D), or waiting."""
        if (now := lingering(pid)) is not None:
            self.say("state", job=job, process=name, pid=pid, state=now.state, wchan=now.wchan)

    def _stop(self, _command: "dict[str, Any]") -> None:
        self.leave("stop")

    # -- what happened ------------------------------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        job, name = self.jobs.get(event.process, (0, event.process.worker))
        if not isinstance(event, End):
            self._pass_on(job, name, event.line)
            return
        self.jobs.pop(event.process, None)
        if name == "check":
            self._report(job, bytes(event.process.output))
        if all(job != other for other, _ in self.jobs.values()):
            self.limits.pop(job, None)
        tail = bytes(event.process.tail).decode("utf-8", "replace")[-TAIL_CHARACTERS:]
        self._sweep()
        self.say(
            "end",
            job=job,
            process=name,
            text="",
            signal=event.exit.signal,
            status=event.exit.status,
            killed=event.process.killed,
            tail=tail,
        )

    def _pass_on(self, job: int, name: str, line: bytes) -> None:
        try:
            record = json.loads(line)
        except ValueError:  # a library printed on the reply pipe
            return
        if isinstance(record, dict) and len(line) < MAX_REPORT_BYTES:
            self.say("record", job=job, process=name, record=record)

    def _report(self, job: int, output: bytes) -> None:
        """The node's report, and where it is too long for a line without the checks that passed."""
        try:
            report = json.loads(output)
        except ValueError:
            report = None
        if not isinstance(report, dict):
            self.say("report", job=job, report=None, text=output[-TAIL_CHARACTERS:].decode("utf-8", "replace"))
            return
        if len(output) > MAX_REPORT_BYTES:
            report["checks"] = [one for one in report.get("checks", []) if one.get("status") != "pass"][:100]
        self.say("report", job=job, report=report, text="")

    def _sweep(self) -> None:
        """Kill what a killed torchrun, or a check, left to us: nobody waits for it, and it holds GPUs."""
        self.swept_at = time.monotonic()
        for pid in children_of_this_process() - {process.pid for process in self.children.alive}:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


def steering(command: "dict[str, Any]", address: str) -> "dict[str, str]":
    """The environment of a rank: which interface it takes, and how soon NCCL's own watchdogs give up.

    gloo asks the resolver for this host's own name unless told, which is often 127.0.1.1: it gets the interface of the
    address by which the others know this host. NCCL chooses for itself, as it would in the job.
    """
    limit_s = int(command["timeout_s"])
    set_by_user = os.environ
    chosen: dict[str, str] = {
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(limit_s + 15),
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
        "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "1000",
    }
    if "NCCL_DEBUG" not in set_by_user:
        chosen["NCCL_DEBUG"] = "WARN"
    if command["ifname"]:
        chosen.update(GLOO_SOCKET_IFNAME=command["ifname"], NCCL_SOCKET_IFNAME=command["ifname"])
    elif "GLOO_SOCKET_IFNAME" not in set_by_user and (name := _interface_of(address)):
        chosen["GLOO_SOCKET_IFNAME"] = name
    return chosen


def _interface_of(address: str) -> str:
    if address.startswith("127."):
        return "lo"
    return next((found["name"] for found in facts.network() if found["address"] == address), "")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _listening(address: str, port: int) -> socket.socket:
    """A socket that listens there. Raises OSError, also where this kernel has no such addresses at all."""
    listener = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _connecting(address: str, port: int) -> socket.socket:
    """A socket that is on its way there, or there already. Raises OSError for what fails at once.

    After that `SO_ERROR` is 0, as if it were connected: the kernel says such an error once, to whoever connects.
    """
    connection = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        code = connection.connect_ex((address, port))
    except OSError:  # an interface in the address (fe80::1%eth0) that is not here
        connection.close()
        raise
    if code not in (0, errno.EINPROGRESS):
        connection.close()
        raise OSError(code, os.strerror(code))
    return connection


def _peer(connection: socket.socket) -> "tuple[int, str]":
    """The port that a connection has reached; 0 and why, where it has not."""
    code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    try:
        return (0, os.strerror(code)) if code else (connection.getpeername()[1], "")
    except OSError as error:  # it was there, and is gone again
        return 0, error.strerror or str(error)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _children_of(pid: int) -> "list[int]":
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def main(argv: "list[str]") -> NoReturn:
    """``agent.py [name [address [framed]]]``: as the controller knows this host, and the address to use."""
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    become_subreaper()
    name, address, framed = (*argv, "", "", "")[:3]
    agent = Agent(name, address, FRAMED if framed else (b"", b"\n"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, frame: agent.leave(f"signal {number}"))
    agent.run()


if __name__ == "__main__":
    main(sys.argv[1:])
