"""The nodes of a Slurm allocation: one srun for all of them, and the agents' lines over its own streams.

::

    probe --+-- scontrol show hostnames     the nodes, in Slurm's order          (before the run; UsageError: exit 2)
            +-- sinfo                       those that Slurm itself has given up: not asked
            +-- srun == slurmstepd == /bin/sh -> agent        a task on each node
                 stdin: every line to all tasks, {"to": [names]} where not all are meant
                 stdout: frames behind the tasks' numbers;  stderr: who ended how           (probe.cluster.srun)

When srun cannot start one task it ends the step on all nodes, ``--no-kill`` or not, after the 10 s that it tries. So
no host counts as reached before every task has spoken, and where one has not - srun says so, or it stays silent for
`LAUNCH_S` - it is left out and the step started again without it. Later nothing that happens on one node ends the
agent of another.

Nobody tells that a node lost its power before Slurm gives it up after minutes: an agent answers each tick, and one that
has not answered for `SILENT_S` is lost. No listener here is ours; srun listens for its slurmstepds, as in every job.
Over 300 lines because launching, hearing and the ends of one srun are one story.
"""

import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio
from msgspec import Struct

from probe.cluster import srun
from probe.cluster.hosts import Host, from_names
from probe.cluster.launch import FLOOD, Channel, Closed, NotReached
from probe.cluster.protocol import ProtocolError, Ready, Stop, decode, encode
from probe.config import UsageError, shown
from probe.worker.parent import MAX_REPLY_BYTES, Children, End, Line, Process

LAUNCH_S = 15.0
"""For every node's agent to speak; as `gate.GREET_S`, and more than the 10 s after which srun gives a node up."""
MOST_LAUNCHES = 3
GATHER_S = 0.5
"""After the first node that cannot be launched: others that are in the same state are told within moments."""
ASK_S = 5.0
"""For scontrol and sinfo, whose own limit for a controller that is gone is longer."""
KEEPALIVE_S = 2.0
KEEPALIVE = b'{"to":[],"verb":"tick","n":0}\n'
"""For the agents that wait until the others have spoken: any line says that we are there, this one asks for nothing."""
SILENT_S = 15.0
"""As ssh's keepalives: an agent answers a tick at once, so seven have been left unanswered."""
LAST_WORDS_S = 0.3
"""From srun's word that a task has ended to the last words of that task, which may come after it."""
WRITE_S = 5.0
FULL_S = 0.01
LEAVE_S = 1.0
MOST_WAITING = 100_000
MOST_OWN_WORDS = 5


class Slurm(Struct, frozen=True):
    """What is needed to start a step in the allocation that this process is in."""

    job: str
    srun: str
    sinfo: str
    """Empty: there is none."""
    python: str
    """Of the agents; empty: our own path, then python3."""


def hosts() -> tuple[Host, ...]:
    """The nodes of this allocation, in Slurm's order. Raises UsageError naming what is missing, and how to get it."""
    nodes = _given("SLURM_JOB_NODELIST")
    return from_names(_unfolded(_program("scontrol"), nodes), "SLURM_JOB_NODELIST")


def prepare(python: str) -> Slurm:
    """Raises UsageError like `hosts`."""
    if python and not python.startswith("/") and "/" in python:
        raise UsageError(f"{shown(python)} is relative", "--remote-python", "an absolute path, or a name on the PATH")
    return Slurm(_given("SLURM_JOB_ID"), _program("srun"), shutil.which("sinfo") or "", python)


def _given(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        allowed = "inside of one: salloc -N 2 probe gate --slurm, or in a script for sbatch"
        raise UsageError(f"there is no Slurm allocation here ({name} is not set)", "--slurm", allowed)
    return value


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise UsageError(f"{name} is not on the PATH", "--slurm", "Slurm's client programs on the PATH")
    return os.path.abspath(found)


def _unfolded(scontrol: str, nodes: str) -> list[str]:
    """Slurm's own reading of its node list, in its order: its task n will be on the n-th."""
    argv = [scontrol, "show", "hostnames", nodes]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ASK_S, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"scontrol gives no answer: {error}", "--slurm", "a Slurm that answers") from None
    if done.returncode or not done.stdout.split():
        words = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise UsageError(f"scontrol show hostnames: {words[0][:300]}", "--slurm", "a Slurm that answers")
    return done.stdout.split()


class SlurmChannel:
    """One task of the step. `ended` and `heard` are the launcher's to call."""

    def __init__(self, launcher: "SlurmLauncher", name: str) -> None:
        self.name = name
        self.end = ""
        """How it ended; empty: it has not, or its last words may still come."""
        self.ending = False
        self.spoke = False
        self.tail = ""
        """The last line of its stderr."""
        self.unanswered_since: float | None = None
        self._launcher = launcher
        self._joined = srun.Joined()
        self._heard_bytes = 0
        self._lines, self._received = anyio.create_memory_object_stream[bytes](MOST_WAITING)

    def heard(self, piece: bytes) -> None:
        if self.end:
            return
        self.unanswered_since = None
        self._heard_bytes += len(piece)
        try:
            lines = self._joined.take(piece)
            if self._heard_bytes > MAX_REPLY_BYTES:
                self.over(FLOOD)
            if lines and not self.spoke:
                self.spoke = True
                _must_be_of(self.name, lines[0])
            for line in lines:
                self._lines.send_nowait(line)
        except srun.Broken as error:
            self.over(str(error))
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            self.over(FLOOD)

    def over(self, why: str) -> None:
        """Nothing more will come."""
        self.ending = True
        if not self.end:
            self.end = why if not self.tail or self.tail in why else f"{why}: {self.tail}"
            self._lines.close()

    async def send(self, line: bytes) -> None:
        if self.end:
            raise Closed(self.end)
        if self.unanswered_since is None:
            self.unanswered_since = time.monotonic()
        self._launcher.say(line, self)

    async def receive(self) -> bytes:
        try:
            return await self._received.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise Closed(self.end) from None

    async def close(self) -> None:
        """The input is every task's: this one's agent is told to leave."""
        if not self.end:
            self._launcher.say(encode(Stop()), self)
            self.over("its input was closed")


def _must_be_of(name: str, line: bytes) -> None:
    """Blame falls by a task's number: it must be where Slurm's order puts it. Raises `srun.Broken`."""
    with suppress(ProtocolError):  # for who greets the agent to say
        ready = decode(line)
        if isinstance(ready, Ready) and ready.name != name:
            raise srun.Broken(f"Slurm has put the task of {name} on {shown(ready.name)}")


class Step:
    """One srun: the channels of its tasks, by their number."""

    def __init__(self, process: Process, stdin: int, channels: Sequence[SlurmChannel]) -> None:
        self.process = process
        self.stdin = stdin
        self.channels = channels
        self.not_launched: dict[str, str] = {}
        self.words: deque[str] = deque(maxlen=MOST_OWN_WORDS)
        self.over = False
        self._said = bytearray()

    @property
    def last_words(self) -> str:
        """The first error of srun's own, which is the cause, else whatever it said last."""
        errors = [text for text in self.words if "error" in text]
        return (errors or [*self.words, "srun said nothing"])[0]

    def channel(self, task: int) -> SlurmChannel | None:
        return self.channels[task] if task < len(self.channels) else None

    @property
    def waiting_for(self) -> list[SlurmChannel]:
        """Those whose agent has neither spoken nor ended."""
        return [channel for channel in self.channels if not (channel.spoke or channel.ending)]

    def close_stdin(self) -> None:
        """The end of input ends every agent, and srun with the last of them."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def give_up(self) -> None:
        """Have srun end what it can reach; it ends by itself, or with this process."""
        self.close_stdin()
        if not self.over and not self.process.gone:
            with suppress(OSError):
                signal.pidfd_send_signal(self.process.pidfd, signal.SIGTERM)

    def names(self, channels: Sequence[SlurmChannel]) -> list[str]:
        """Whom a line is for; none: all that are still there."""
        meant = set(map(id, channels))
        everyone = all(channel.end or id(channel) in meant for channel in self.channels)
        return [] if everyone else [channel.name for channel in channels]

    def stderr(self) -> list[srun.Said]:
        """What srun has said since: its tail is taken, so that it holds the rest alone."""
        self._said += self.process.tail
        self.process.tail.clear()
        self.process.heard_bytes = 0  # the bound is of a child that is one host; here each channel has its own
        *lines, self._said = self._said.split(b"\n")
        del self._said[: -(1 << 16)]
        return [srun.said(bytes(line)) for line in lines]


class SlurmLauncher:
    name = "slurm"

    def __init__(self, children: Children, slurm: Slurm, hosts: Sequence[Host], launch_s: float = LAUNCH_S) -> None:
        self._children = children
        self._slurm = slurm
        self._names = [host.name for host in hosts]
        self._launch_s = launch_s
        self._step: Step | None = None
        self._channels: dict[str, SlurmChannel] = {}
        self._not_reached: dict[str, NotReached] = {}
        self._launched = anyio.Event()
        self._news = anyio.Event()
        self._outbox: list[tuple[bytes, list[SlurmChannel]]] = []
        self._to_write = anyio.Event()
        self._answers: dict[Process, anyio.Event] = {}
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        for task in (self._pump, self._write, self._watch, self._launch):
            self._tasks.start_soon(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Agents that were told to leave have left, and srun with them; who kills us kills srun."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_S):
            if self._step is not None:
                self._step.close_stdin()
                while not self._step.over:
                    await self._news.wait()
        if self._step is not None:
            self._step.give_up()
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def open(self, host: Host) -> Channel:
        await self._launched.wait()
        if reason := self._not_reached.get(host.name):
            raise reason
        return self._channels[host.name]

    # -- launching ----------------------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        """Start the step, and again without those that cannot be started: the others were ended with them."""
        rest = await self._that_slurm_has()
        for _ in range(MOST_LAUNCHES):
            step = self._start(rest) if rest else None
            if step is None:
                break
            await self._settled(step)
            out = self._cannot_start(step)
            if not out:
                break
            self._not_reached |= out
            rest = [channel.name for channel in step.channels if channel.name not in out and not channel.ending]
            step.give_up()
        else:
            words = f"its step was ended {MOST_LAUNCHES} times, each time because of other nodes"
            self._not_reached |= {name: NotReached("slurm_ended", words) for name in rest}
        self._launched.set()

    async def _that_slurm_has(self) -> list[str]:
        """The nodes without those that Slurm itself has given up: a step that names one waits for it for ever."""
        output = await self._ask([self._slurm.sinfo, "-h", "-N", "-n", ",".join(self._names), "-o", "%N|%T|%E"])
        found = srun.states(output)
        for name in self._names:
            state, reason = found.get(name, ("", ""))
            if srun.cannot_start(state):
                words = f"Slurm has it as {state}{f' ({reason})' if reason else ''}"
                self._not_reached[name] = NotReached("slurm_down", words)
        return [name for name in self._names if name not in self._not_reached]

    async def _ask(self, argv: Sequence[str]) -> str:
        """What a program of Slurm's prints; "" where it does not answer: then srun will say what is wrong."""
        if not argv[0]:
            return ""
        process = self._children.start_foreign(argv, worker="sinfo")
        self._answers[process] = anyio.Event()
        with anyio.move_on_after(ASK_S):
            await self._answers[process].wait()
            return process.output.decode("utf-8", "replace")
        process.kill()
        return ""

    def _start(self, names: Sequence[str]) -> Step | None:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writing, False)
        argv = srun.argv(self._slurm.srun, self._slurm.job, names, self._slurm.python)
        try:
            process = self._children.start_foreign(
                argv, worker="srun", environment=srun.environment(os.environ), stdin=reading
            )
        except OSError as error:
            os.close(writing)
            self._not_reached |= {name: NotReached("slurm", f"srun cannot be started: {error}") for name in names}
            return None
        finally:
            os.close(reading)
        channels = [SlurmChannel(self, name) for name in names]
        self._channels |= {channel.name: channel for channel in channels}
        self._outbox.clear()
        self._step = Step(process, writing, channels)
        return self._step

    async def _settled(self, step: Step) -> None:
        """Wait until each task has spoken or ended, or it is known that some will not."""
        until = time.monotonic() + self._launch_s
        gathering = False
        while step.waiting_for and not step.over:
            if step.not_launched and not gathering:
                gathering, until = True, time.monotonic() + GATHER_S
            if (left_s := until - time.monotonic()) <= 0:
                return
            self._outbox.append((KEEPALIVE, []))
            self._to_write.set()
            news = self._news
            with anyio.move_on_after(min(KEEPALIVE_S, left_s)):
                await news.wait()

    def _cannot_start(self, step: Step) -> dict[str, NotReached]:
        """Without whom the step must be started again: who cannot be told to start, else who says nothing."""
        silent = [channel.name for channel in step.waiting_for]
        if failed := {name: step.not_launched[name] for name in silent if name in step.not_launched}:
            return {
                name: NotReached("slurm_launch", f"Slurm cannot start a task there: {why}")
                for name, why in failed.items()
            }
        if step.over:
            return {name: NotReached("slurm", step.last_words) for name in silent}
        words = f"its task said nothing within {self._launch_s:.0f} s"
        return {name: NotReached("slurm_launch", words) for name in silent}

    # -- speaking -----------------------------------------------------------------------------------------------------

    def say(self, line: bytes, channel: SlurmChannel) -> None:
        """Have a line written soon; the same one for many, as a tick is, goes out once."""
        if self._outbox and self._outbox[-1][0] == line and channel not in self._outbox[-1][1]:
            self._outbox[-1][1].append(channel)
        else:
            self._outbox.append((line, [channel]))
        self._to_write.set()

    async def _write(self) -> None:
        while True:
            await self._to_write.wait()
            self._to_write = anyio.Event()
            outbox, self._outbox = self._outbox, []
            step = self._step
            if step is None or step.stdin < 0:
                continue
            data = b"".join(
                line if line is KEEPALIVE else srun.addressed(line, step.names(channels)) for line, channels in outbox
            )
            if not await _write_all(step, data):
                self._lose(step, "srun does not read its input")

    # -- hearing ------------------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        while True:
            await anyio.wait_readable(self._children.fd)
            for event in self._children.poll():
                step = self._step
                if event.process in self._answers and isinstance(event, End):
                    self._answers[event.process].set()
                elif step is None or event.process is not step.process:
                    continue  # a step that was given up
                elif isinstance(event, Line):
                    self._heard(step, event.line)
                else:
                    self._hear_errors(step)
                    step.over = True
                    step.close_stdin()
                    self._lose(step, f"srun is gone: {step.last_words}")
            if self._step is not None:
                self._hear_errors(self._step)
            self._tell_news()

    def _tell_news(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    @staticmethod
    def _heard(step: Step, line: bytes) -> None:
        if (found := srun.labelled(line)) is not None and (channel := step.channel(found[0])) is not None:
            channel.heard(found[1])

    def _hear_errors(self, step: Step) -> None:
        for one in step.stderr():
            match one:
                case srun.TaskWords():
                    if (channel := step.channel(one.task)) is not None and one.text:
                        channel.tail = one.text
                case srun.TaskEnd():
                    for channel in filter(None, map(step.channel, one.tasks)):
                        channel.ending = True
                        self._tasks.start_soon(self._over, channel, one.how)
                case srun.NotLaunched():
                    step.not_launched[one.node] = one.why
                case srun.OwnWords() if one.text:
                    step.words.append(one.text)

    async def _over(self, channel: SlurmChannel, why: str) -> None:
        await anyio.sleep(LAST_WORDS_S)
        channel.over(why)

    def _lose(self, step: Step, why: str) -> None:
        for channel in step.channels:
            self._tasks.start_soon(self._over, channel, why)

    async def _watch(self) -> None:
        """Lose whoever has answered nothing for too long."""
        while True:
            await anyio.sleep(1.0)
            now = time.monotonic()
            for channel in self._channels.values():
                since = channel.unanswered_since
                if not channel.end and since is not None and now - since > SILENT_S:
                    channel.over(f"it has not answered for {SILENT_S:.0f} s")


async def _write_all(step: Step, data: bytes) -> bool:
    """Whether all of it was taken; what is left when srun has ended is nobody's any more."""
    with anyio.move_on_after(WRITE_S):
        while data and step.stdin >= 0:
            try:
                data = data[os.write(step.stdin, data) :]
            except BlockingIOError:
                await anyio.sleep(FULL_S)  # it may be closed meanwhile, which whoever waits for it must not
            except OSError:
                return True
    return not data or step.stdin < 0
