"""Starts, hears, kills and reaps every child of probe. Standard library only, so a child can start before anyio is.

::

    probe (subreaper) --- epoll ---+-- files, nvml, cuda ...   spawned: child.py or exec.py
                                   +-- zygote                  spawned; imports torch once
                                         +-- torch cpu:0, ...  forked there on request; pipes travel by SCM_RIGHTS

Of each child the parent holds a pidfd (its end, and the only way it is shot), a reply pipe (lines) and a stderr pipe
(drained always, its tail kept). All of them sit in one epoll, which is itself one descriptor to wait on: `poll` turns
what is ready into events and never blocks longer than it is told. No wait here is without a bound.

Over 300 lines because starting, hearing and reaping share the one epoll and its table of descriptors; what is read of
/proc, the last 120 lines, could stand alone but has no other use than theirs.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

FOLDER = os.path.dirname(os.path.abspath(__file__))
MAX_LINE_BYTES = 1 << 20
MAX_REPLY_BYTES = 8 << 20
"""A worker says a few KiB; one that says this much is flooding and is killed."""
TAIL_BYTES = 8192
READ_BYTES = 1 << 16
PR_SET_CHILD_SUBREAPER = 36


class Exit(NamedTuple):
    """How a process ended: by a signal, with a status, or (both None) nobody could tell."""

    signal: int | None = None
    status: int | None = None

    @classmethod
    def of_wait_status(cls, wait_status: int) -> "Exit":
        if os.WIFSIGNALED(wait_status):
            return cls(signal=os.WTERMSIG(wait_status))
        return cls(status=os.WEXITSTATUS(wait_status))


class Line(NamedTuple):
    """One whole line that a child wrote to its reply pipe, without its newline."""

    process: "Process"
    line: bytes


class End(NamedTuple):
    """A child is gone and everything it said has been heard."""

    process: "Process"
    exit: Exit


Event = Line | End


class Process:
    """One child: who it is, what it said last, and whether it has gone."""

    def __init__(self, worker: str, target: str, zygote: "Process | None" = None) -> None:
        self.worker = worker
        self.target = target
        self.zygote = zygote
        self.raw = False
        """Its reply is a foreign program's output: kept whole in `output`, not cut into lines."""
        self.pid = 0
        self.pidfd = -1
        self.reply_fd = -1
        self.stderr_fd = -1
        self.inbox = -1
        """What is written here it reads as its stdin; while it is open, `Children.kill` spares it."""
        self.control: socket.socket | None = None
        self.output = bytearray()
        self.tail = bytearray()
        self.heard_bytes = 0
        self.flooded = False
        self.killed = False
        """By us; so its end by SIGKILL is no riddle."""
        self.gone = False
        self.started_at = time.monotonic()

    @property
    def name(self) -> str:
        return f"{self.worker} {self.target}".rstrip()

    def close_inbox(self) -> None:
        """It will be told nothing more, and is spared no longer."""
        if self.inbox >= 0:
            os.close(self.inbox)
            self.inbox = -1

    def kill(self) -> None:
        """SIGKILL it through its pidfd, and its process group while its pid cannot have been reused."""
        if self.gone or self.pidfd < 0:
            return
        self.killed = True
        if self.zygote is None:  # ours to reap and not yet reaped: the number, and so the group, is still its own
            _ignoring_absence(os.killpg, self.pid, signal.SIGKILL)
        _ignoring_absence(signal.pidfd_send_signal, self.pidfd, signal.SIGKILL)


class Survivor(NamedTuple):
    """A process that was killed and had not gone when probe had to leave."""

    pid: int
    start_ticks: int
    worker: str
    target: str
    state: str
    wchan: str


class Children:
    """All children of this process."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, tuple[str, Process]] = {}
        self._all: list[Process] = []
        self._tokens: dict[int, Process] = {}
        self._unexplained: list[Process] = []
        """Gone by their pidfd, but the zygote has not said yet how."""

    @property
    def fd(self) -> int:
        """Readable when `poll` has something to say."""
        return self._epoll.fileno()

    @property
    def alive(self) -> list[Process]:
        return [process for process in self._all if not process.gone]

    @property
    def _doomed(self) -> list[Process]:
        """All but those that are still to be told something."""
        return [process for process in self.alive if process.inbox < 0]

    def start(  # noqa: PLR0913 - one keyword for each thing that a child can be given
        self,
        program: str,
        job: Mapping[str, Any],
        *,
        worker: str,
        target: str = "",
        limit_s: float = 0.0,
        python: str = sys.executable,
        version: tuple[int, int] = sys.version_info[:2],
        environment: Mapping[str, str | None] | None = None,
        inbox: bool = False,
    ) -> Process:
        """Spawn ``worker/<program>.py`` under `python`; raise OSError where that cannot be executed.

        `environment` is laid over the caller's own; None takes a variable out. `inbox`: it will be told more.
        """
        process = Process(worker, target)
        control = None
        passed: list[int] = []
        if program == "zygote":
            process.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            passed.append(control.fileno())
            job = {**job, "control_fd": control.fileno()}

        def argv(reply_fd: int) -> list[str]:
            path = os.path.join(FOLDER, program + ".py")
            return [
                python,
                *bootstrap("child", version),
                path,
                str(reply_fd),
                str(os.getpid()),
                str(limit_s),
                json.dumps(job),
            ]

        try:
            self._spawn(process, argv, passed, environment or {}, inbox=inbox)
        finally:
            if control is not None:
                control.close()
        return process

    def start_foreign(
        self,
        argv: Sequence[str],
        *,
        worker: str,
        target: str = "",
        cwd: str = "/",
        environment: Mapping[str, str | None] | None = None,
        user: str = "",
        stdin: int = subprocess.DEVNULL,
    ) -> Process:
        """Run somebody else's program under ``exec.py``; its fd 1 is the reply pipe.

        What it writes there is kept whole in `output`; of one that is given a `stdin`, and so talked with, it comes
        as lines. `user`: as whom, by name or number; empty: as this process.
        """
        process = Process(worker, target)
        process.raw = stdin == subprocess.DEVNULL

        def wrapped(reply_fd: int) -> list[str]:
            wrapper = bootstrap("exec", sys.version_info[:2])
            return [sys.executable, *wrapper, str(reply_fd), str(os.getpid()), cwd, user, "--", *argv]

        self._spawn(process, wrapped, [], environment or {}, stdin)
        return process

    def _spawn(
        self,
        process: Process,
        argv: Any,
        passed: list[int],
        environment: Mapping[str, str | None],
        stdin: int = subprocess.DEVNULL,
        *,
        inbox: bool = False,
    ) -> None:
        reply_fd, reply_end = os.pipe2(os.O_CLOEXEC)
        stderr_fd, stderr_end = os.pipe2(os.O_CLOEXEC)
        inbox_end, process.inbox = os.pipe2(os.O_CLOEXEC) if inbox else (-1, -1)
        try:
            spawned = subprocess.Popen(
                argv(reply_end),
                stdin=inbox_end if inbox else stdin,
                stdout=stderr_end,
                stderr=stderr_end,
                pass_fds=(reply_end, *passed),
                cwd="/",
                start_new_session=True,
                env=_over(os.environ, environment),
            )
        except OSError:
            os.close(reply_fd)
            os.close(stderr_fd)
            process.close_inbox()
            raise
        finally:
            os.close(reply_end)
            os.close(stderr_end)
            if inbox:
                os.close(inbox_end)
        spawned.returncode = 0  # Popen must never wait for it: ends are reaped here, through the pidfd
        process.pid = spawned.pid
        self._adopt(process, os.pidfd_open(spawned.pid), reply_fd, stderr_fd)
        if process.control is not None:
            process.control.setblocking(False)
            self._watch(process.control.fileno(), "control", process)

    def fork(
        self,
        zygote: Process,
        job: Mapping[str, Any],
        *,
        worker: str,
        target: str,
        limit_s: float,
        environment: Mapping[str, str],
        program: str = "",
    ) -> Process:
        """Have the zygote fork a child for `job`, of the program that it has under that name; empty: the worker's.

        What becomes of it arrives as events, also if the zygote is gone.
        """
        process = Process(worker, target, zygote)
        reply_fd, reply_end = os.pipe2(os.O_CLOEXEC)
        stderr_fd, stderr_end = os.pipe2(os.O_CLOEXEC)
        token = len(self._tokens)
        self._tokens[token] = process
        request = {"fork": token, "program": program or worker, "limit_s": limit_s}
        request |= {"environment": dict(environment), "job": dict(job)}
        self._adopt(process, -1, reply_fd, stderr_fd)
        try:
            if zygote.control is None or zygote.gone:
                raise ConnectionError("the zygote is gone")
            socket.send_fds(zygote.control, [json.dumps(request).encode()], [reply_end, stderr_end])
        except OSError:
            self._unexplained.append(process)
        finally:
            os.close(reply_end)
            os.close(stderr_end)
        return process

    def _adopt(self, process: Process, pidfd: int, reply_fd: int, stderr_fd: int) -> None:
        process.reply_fd, process.stderr_fd = reply_fd, stderr_fd
        os.set_blocking(reply_fd, False)
        os.set_blocking(stderr_fd, False)
        self._all.append(process)
        self._watch(reply_fd, "reply", process)
        self._watch(stderr_fd, "stderr", process)
        if pidfd >= 0:
            self._watch_end(process, pidfd)

    def _watch_end(self, process: Process, pidfd: int) -> None:
        process.pidfd = pidfd
        self._watch(pidfd, "pidfd", process)

    def _watch(self, fd: int, kind: str, process: Process) -> None:
        self._readers[fd] = (kind, process)
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        if self._readers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # -- hearing ------------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float = 0.0) -> list[Event]:
        """What children said and which of them ended, waiting at most `timeout_s` for the first of it."""
        events: list[Event] = []
        for fd, _ in self._epoll.poll(timeout_s):
            kind, process = self._readers.get(fd, ("", None))
            if process is None:  # unwatched by an earlier event of this very round
                continue
            if kind == "reply":
                events += self._hear(process)
            elif kind == "stderr":
                self._drain(process)
            elif kind == "control":
                events += self._listen(process)
            else:
                events += self._ended(process)
        events += self._explain()
        return events

    def _hear(self, process: Process) -> Iterator[Event]:
        data = _read(process.reply_fd)
        if data is None:
            return
        if not data:
            self._unwatch(process.reply_fd)
            return
        process.heard_bytes += len(data)
        process.output += data
        if process.heard_bytes > MAX_REPLY_BYTES or (len(process.output) > MAX_LINE_BYTES and not process.raw):
            process.flooded = True
            process.output.clear()
            self._unwatch(process.reply_fd)
            process.kill()
        if not process.raw:
            *lines, rest = process.output.split(b"\n")
            process.output = rest
            yield from (Line(process, bytes(line)) for line in lines)

    def _drain(self, process: Process) -> None:
        data = _read(process.stderr_fd)
        if data:
            process.tail += data
            del process.tail[:-TAIL_BYTES]
        elif data is not None:
            self._unwatch(process.stderr_fd)

    def _listen(self, zygote: Process) -> Iterator[Event]:
        """Hear the zygote out: which process it made for which request, and how each of them ended."""
        while zygote.control is not None and zygote.control.fileno() in self._readers:
            try:
                message, fds, _, _ = socket.recv_fds(zygote.control, 4096, 1)
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if not message:
                self._unwatch(zygote.control.fileno())
                return
            said = json.loads(message)
            process = self._tokens[said["token"]]
            if "pid" in said:
                process.pid = said["pid"]
                self._watch_end(process, fds[0])
            else:
                yield from self._gone(process, Exit.of_wait_status(said["wait_status"]))

    def _ended(self, process: Process) -> Iterator[Event]:
        self._unwatch(process.pidfd)
        exit_ = _reap(process.pidfd)
        if exit_ is not None:
            yield from self._gone(process, exit_)
        else:
            self._unexplained.append(process)

    def _explain(self) -> Iterator[Event]:
        """The ends that the zygote owed us, once the zygote itself is gone: its children fall to us."""
        for process in self._unexplained[:]:
            if process.gone:
                self._unexplained.remove(process)
            elif process.zygote is None or process.zygote.gone:
                self._unexplained.remove(process)
                yield from self._gone(process, (_reap(process.pidfd) if process.pidfd >= 0 else None) or Exit())

    def _gone(self, process: Process, exit_: Exit) -> Iterator[Event]:
        """Hear what is left in its pipes (a sibling may hold them open: never wait for their end), then close."""
        if process.gone:
            return
        yield from self._hear_out(process)
        yield from self._listen(process)
        process.gone = True
        process.close_inbox()
        for fd in (process.reply_fd, process.stderr_fd, process.pidfd):
            if fd >= 0:
                self._unwatch(fd)
                os.close(fd)
        if process.control:
            self._unwatch(process.control.fileno())
            process.control.close()
        # never born: the zygote ended before it answered
        self._unexplained += [p for p in self.alive if p.zygote is process and p.pidfd < 0]
        yield End(process, exit_)

    def _hear_out(self, process: Process) -> Iterator[Event]:
        while process.reply_fd in self._readers:
            heard = process.heard_bytes
            yield from self._hear(process)
            if process.heard_bytes == heard:
                break
        for _ in range(MAX_REPLY_BYTES // READ_BYTES):
            if process.stderr_fd not in self._readers or not _readable(process.stderr_fd):
                break
            self._drain(process)

    # -- ending -------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL all children that are known but those that are still to be told something; returns at once."""
        for process in self._doomed:
            process.kill()

    def reap(self, bound_s: float) -> list[Event]:
        """Kill and reap all children, and whatever they left to us, for at most `bound_s`."""
        events: list[Event] = []
        until = time.monotonic() + bound_s
        self.kill()
        while True:
            left_s = max(0.0, until - time.monotonic())
            events += self.poll(min(left_s, 0.02 if self._doomed else 0.001))
            self.kill()  # also one that was forked while we killed the rest
            strangers = children_of_this_process() - {process.pid for process in self.alive}
            for pid in strangers:  # our own children by adoption: the number cannot be reused before we reap it
                _ignoring_absence(os.kill, pid, signal.SIGKILL)
                _ignoring_absence(os.waitpid, pid, os.WNOHANG)
            if not left_s or not (strangers or self._doomed):
                return events

    def survivors(self) -> list[Survivor]:
        """The children that are still there: killed, and not gone."""
        known = {process.pid: process for process in self.alive}
        found = []
        for pid in children_of_this_process() | set(known):
            there = lingering(pid)
            process = known.get(pid)
            if there is None or (process and process.inbox >= 0):
                continue
            worker, target = (process.worker, process.target) if process else ("grandchild", "")
            found.append(Survivor(pid, there.start_ticks, worker, target, there.state, there.wchan))
        return found


def bootstrap(name: str, version: tuple[int, int]) -> list[str]:
    """The interpreter's arguments that run ``worker/<name>.py`` without the working directory on its path."""
    path = os.path.join(FOLDER, name + ".py")
    if version >= (3, 11):
        return ["-P", path]
    # no -P below 3.11: the first statement takes the working directory ('') out before anything is imported from it
    run = f"import runpy; runpy.run_path({path!r}, run_name='__main__')"
    return ["-c", f"import sys; sys.path[:1] = [] if sys.path[0] == '' else sys.path[:1]; {run}"]


def become_subreaper() -> None:
    """Children of our children fall to us when their parent ends, wherever they moved to."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class ProcessStat(NamedTuple):
    """One process or thread, as the kernel has it."""

    state: str
    parent: int
    start_ticks: int


def process_stat(pid: int) -> ProcessStat | None:
    """State, parent and start time by ``/proc/<pid>/stat``; None where there is no such process."""
    return _stat(f"/proc/{pid}")


def _stat(folder: str) -> ProcessStat | None:
    try:
        with open(f"{folder}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        return ProcessStat(fields[0].decode(), int(fields[1]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


class Lingering(NamedTuple):
    """A process that has not gone: since when it is, and what the thread that keeps it does."""

    start_ticks: int
    state: str
    wchan: str
    """The kernel function it sleeps in, where the kernel tells; else empty."""


def lingering(pid: int) -> Lingering | None:
    """None where the process has gone, or is a zombie all of whose threads have ended.

    A killed process whose first thread has ended is a zombie by its own stat while another thread is still stuck.
    """
    whole = process_stat(pid)
    if whole is None:
        return None
    folders = [f"/proc/{pid}"]
    if whole.state == "Z":
        with suppress(OSError):
            folders = [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    for folder in folders:
        stat = _stat(folder)
        if stat is not None and stat.state not in ("Z", "X"):
            return Lingering(whole.start_ticks, stat.state, _wchan(folder))
    return None


def _wchan(folder: str) -> str:
    try:
        with open(f"{folder}/wchan", "rb") as file:
            name = file.read(128).decode("ascii", "replace")
    except OSError:
        return ""
    return "" if name == "0" else name


def children_of_this_process() -> set[int]:
    """The pids whose parent is this process, zombies included."""
    found: set[int] = set()
    try:
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                found.update(map(int, file.read().split()))
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN, or a thread that ended: ask every process
        mine = os.getpid()
        for name in os.listdir("/proc"):
            if name.isdigit() and (stat := process_stat(int(name))) and stat.parent == mine:
                found.add(int(name))
    except OSError:  # no descriptor left to ask with: those that are known are killed all the same
        return found
    return found


def _reap(pidfd: int) -> Exit | None:
    """How the process behind `pidfd` ended; None while it is not ours to reap (the zygote's) or not gone."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return Exit(status=result.si_status)
    return Exit(signal=result.si_status)


def _read(fd: int) -> bytes | None:
    """What is there to read; None where that is nothing yet, empty at the end."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def _over(base: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**base, **{name: value for name, value in changes.items() if value is not None}}
    return {name: value for name, value in merged.items() if name not in changes or changes[name] is not None}


def _ignoring_absence(call: Any, *arguments: Any) -> None:
    """A process that ended meanwhile needs no signal; one that is not ours to shoot is left alone."""
    with suppress(ProcessLookupError, PermissionError, ChildProcessError):
        call(*arguments)
