"""One host in the gate: the conversation with its agent, as the controller has it.

::

    Member.greet      ready <- , hello -> , hello <-        raises NotReached: no python, no probe, another version
    Member.converse   every line that comes, until the channel ends: records go to the job that waits for them

A job is a stream of (member, message); None for the message says that the agent is lost, and why is in `Member.lost`.
"""

import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from probe import __version__
from probe.cluster import protocol
from probe.cluster.hosts import Host
from probe.cluster.launch import Channel, Closed, NotReached
from probe.cluster.protocol import (
    PROTOCOL,
    AnyMessage,
    Bye,
    Ended,
    Facts,
    Heard,
    Hello,
    HelloBack,
    Left,
    NodeReport,
    ProtocolError,
    Reached,
    Ready,
    Refused,
    State,
    Tick,
    Tock,
    Torch,
)
from probe.config import shown

MOST_NOISE = 200
"""Lines that a login shell's start-up files may print before the agent's first."""
Job = MemoryObjectSendStream[tuple["Member", AnyMessage | None]]


class Member:
    def __init__(self, index: int, host: Host, channel: Channel) -> None:
        self.index = index
        """In the list of hosts."""
        self.host = host
        self.channel = channel
        self.facts: Facts | None = None
        self.torch: Torch | None = None
        self.importer: dict[str, object] = {}
        """What the warm importer said of torch."""
        self.import_s = 0.0
        self.importer_error = ""
        self.clock_offset_s: float | None = None
        self.round_trip_s = math.inf
        self.lost = ""
        """How the conversation ended, if it did."""
        self.left: tuple[Left, ...] = ()
        self.gone = anyio.Event()
        self.warm = anyio.Event()
        """The importer has torch, or will never have it."""
        self._jobs: dict[int, Job] = {}
        self._ticked: dict[int, float] = {}
        self._n = 0

    @property
    def name(self) -> str:
        return self.host.name

    @property
    def address(self) -> str:
        return self.facts.address if self.facts else ""

    async def send(self, command: protocol.Command) -> None:
        """Send a command; one that cannot be sent is no error here: `converse` says that the agent is lost."""
        try:
            await self.channel.send(protocol.encode(command))
        except Closed as error:
            self._lose(str(error))

    async def tick(self) -> None:
        self._n += 1
        self._ticked[self._n] = time.time()
        await self.send(Tick(n=self._n))

    async def greet(self, deadline_s: float, ifname: str) -> None:
        """Hear the agent's first line and ask for its facts. Raises NotReached."""
        try:
            ready = await self._first_line()
            if (ready.version, ready.protocol) != (__version__, PROTOCOL):
                raise NotReached("other_version", f"probe {ready.version} is there, {__version__} here")
            await self.channel.send(protocol.encode(Hello(deadline_s=deadline_s, ifname=ifname)))
            message = protocol.decode(await self.channel.receive())
        except Closed as error:
            raise no_agent(str(error)) from None
        except ProtocolError as error:
            raise NotReached("agent_failed", f"the agent does not speak this protocol: {error}") from None
        if not isinstance(message, HelloBack):
            raise NotReached("agent_failed", "the agent did not say what it is")
        if not _is_an_address(message.facts.address):
            raise NotReached("agent_failed", f"the agent says that its address is {shown(message.facts.address)}")
        self.facts = message.facts

    async def _first_line(self) -> Ready:
        for _ in range(MOST_NOISE):
            line = await self.channel.receive()
            if line.startswith(b'{"say":'):
                message = protocol.decode(line)
                if isinstance(message, Ready):
                    return message
        raise ProtocolError("none of its first lines is the agent's")

    async def converse(self) -> None:
        """Hear the agent out; returns when it is lost."""
        try:
            while True:
                self._heard(protocol.decode(await self.channel.receive()))
        except Closed as error:
            self._lose(str(error))
        except ProtocolError as error:
            self._lose(f"it said what is no line of the protocol: {error}")

    def _lose(self, why: str) -> None:
        if self.gone.is_set():
            return
        self.lost = self.lost or why
        self.gone.set()
        self.warm.set()
        for job in list(self._jobs.values()):
            self._tell(job, None)

    def _heard(self, message: AnyMessage) -> None:
        match message:
            case Heard(job=0):
                self._imported(message)
            case Ended(job=0):
                self.importer_error = self.importer_error or message.text or _ending(message)
                self.warm.set()
            case Heard() | Ended() | State() | NodeReport() | Reached():
                if (job := self._jobs.get(message.job)) is not None:
                    self._tell(job, message)
            case Torch():
                self.torch = message
                if not message.version and not message.python:
                    self.importer_error = message.text
                    self.warm.set()
            case Tock():
                self._clock(message)
            case Bye():
                self.left = message.left
                self._lose(message.why)
            case Refused():
                self._lose(f"it refused a command: {message.text}")
            case _:
                pass

    def _imported(self, message: Heard) -> None:
        record = message.record
        if record.key == "import":
            self.importer = dict(record.data)
            self.import_s = record.elapsed_s
            if record.code:
                self.importer_error = record.text
            self.warm.set()

    def _clock(self, tock: Tock) -> None:
        """The offset of the quickest round trip: half of it is the most that it can be wrong by."""
        now = time.time()
        sent = self._ticked.pop(tock.n, None)
        if sent is not None and now - sent < self.round_trip_s:
            self.round_trip_s = now - sent
            self.clock_offset_s = tock.clock_s - (sent + now) / 2

    def listen(self, job: int, stream: Job) -> None:
        self._jobs[job] = stream
        if self.gone.is_set():
            self._tell(stream, None)

    def forget(self, job: int) -> None:
        self._jobs.pop(job, None)

    def _tell(self, job: Job, message: AnyMessage | None) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.WouldBlock):
            job.send_nowait((self, message))  # else nobody waits for it any more


def _is_an_address(text: str) -> bool:
    """Or empty, where it has none: other hosts are told to connect there, and refuse what is neither."""
    with suppress(ValueError):
        return not text or bool(ip_address(text))
    return False


def _ending(message: Ended) -> str:
    how = f"signal {message.signal}" if message.signal is not None else f"status {message.status}"
    last = message.tail.strip().splitlines()[-1:]
    return f"the process that imports torch ended with {how}{': ' + last[0] if last else ''}"


WHAT_IS_MISSING: Mapping[str, str] = {
    "no_probe": r"probe: cannot be imported|No module named '?probe",
    "old_python": r"probe: python is",
    "no_python": r"status 127|not found|No such file|cannot execute|Permission denied|status 126",
}


def no_agent(end: str) -> NotReached:
    """Why there is no agent, by how its start ended."""
    for reason, words in WHAT_IS_MISSING.items():
        if re.search(words, end):
            return NotReached(reason, end)
    return NotReached("agent_failed", end)
