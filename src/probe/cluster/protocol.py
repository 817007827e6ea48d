"""The lines between the controller and an agent, as types: what is not exactly one of these is refused.

::

    controller --> agent    {"verb": "round", "job": 7, ...}           one line each, at most 1 MiB
    agent --> controller    {"say": "record", "job": 7, ...}

Verbs and their fields are those of `probe.rank.agent.VERBS`, which checks them again on its side; no verb runs what it
is told. What an agent says of its own name is never believed: a line belongs to the host whose connection it came on.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from probe.cluster import records
from probe.model import Record

MAX_LINE_BYTES = 1 << 20
PROTOCOL = 1
TICK_S = 2.0
"""The agent leaves after 10 s without one (`probe.rank.agent.SILENT_S`): four may be lost on the way."""


class ProtocolError(Exception):
    """A line that is none of the protocol's."""


# --- controller -> agent ---------------------------------------------------------------------------------------------


class Command(Struct, frozen=True, tag_field="verb", tag=str.lower, kw_only=True):
    """What all commands are."""


class Hello(Command, frozen=True):
    deadline_s: float
    ifname: str = ""


class Tick(Command, frozen=True):
    n: int


class Warm(Command, frozen=True):
    """Import torch, to fork ranks from."""


class Node(Command, frozen=True):
    """Run this host's own check."""

    job: int
    budget_s: float


class Listen(Command, frozen=True):
    """Hold a port (0: any) for the rendezvous."""

    job: int
    address: str
    port: int


class Connect(Command, frozen=True):
    """Try whether that port can be reached from here."""

    job: int
    address: str
    port: int
    timeout_s: float


class Work(Command, frozen=True):
    """What the ranks of a group are to do, whatever it is."""

    job: int
    backend: str
    ifname: str
    nproc: int
    seed: int
    timeout_s: float
    """Of one operation, as the backend counts it."""
    limit_s: float
    """Of all of it: then the agent kills."""


class Testing(Work, frozen=True):
    """Alike in a world and in a round."""

    sizes_bytes: tuple[int, ...]
    rates_bytes: tuple[int, ...]


class World(Testing, frozen=True):
    """Be one node of a torchrun world."""

    run_id: str
    nodes: int
    address: str
    port: int
    is_host: bool
    local_address: str
    join_timeout_s: int


class Round(Testing, frozen=True):
    """Fork ranks from the warm importer; rank 0 opens the store and says where."""

    first_rank: int
    """Of this host's local rank 0."""
    ranks: int
    first_local: int
    locals: int
    """How many are forked now: the very first rank of a round alone, since the others must know its port."""
    address: str
    port: int


class Measure(Work, frozen=True):
    """Fork ranks as in a round, which run the collectives of ``probe bench`` and nothing else."""

    first_rank: int
    ranks: int
    first_local: int
    locals: int
    address: str
    port: int
    share_s: float
    """What the measuring program may plan with."""


class Cancel(Command, frozen=True):
    job: int


class Stop(Command, frozen=True):
    """Kill all and leave."""


def encode(command: Command) -> bytes:
    return msgspec.json.encode(command) + b"\n"


# --- agent -> controller ---------------------------------------------------------------------------------------------


class Message(Struct, frozen=True, tag_field="say", tag=str.lower, forbid_unknown_fields=True, kw_only=True):
    """What all messages are."""


class Ready(Message, frozen=True):
    """The first line of an agent."""

    version: str
    protocol: int
    name: str
    pid: int


class Interface(Struct, frozen=True):
    name: str
    state: str
    mtu: int
    speed_mbps: int
    """0: it does not say."""
    address: str


class InfinibandPort(Struct, frozen=True):
    port: str
    state: str
    rate_gbps: int
    layer: str


class Facts(Struct, frozen=True):
    """What a host says of itself (`probe.rank.facts`)."""

    hostname: str
    machine: str
    kernel: str
    python: str
    cpu: str
    cores: int
    gpus: int
    """As device nodes and CUDA_VISIBLE_DEVICES have it."""
    environment: Mapping[str, str]
    interfaces: tuple[Interface, ...]
    infiniband: tuple[InfinibandPort, ...]
    address: str
    """Where the other hosts find this one; empty: the wanted interface has none."""
    interface: str
    mtu: int
    driver: str = ""
    """Of NVIDIA's kernel module; empty: it is not loaded."""


class HelloBack(Message, frozen=True, tag="hello"):
    facts: Facts


class Tock(Message, frozen=True):
    n: int
    clock_s: float


class Torch(Message, frozen=True):
    """Which torch the importer was started with; empty: none was found."""

    version: str
    python: str
    text: str
    cuda: str = ""


class Heard(Message, frozen=True, tag="record"):
    """A record of a process at work."""

    job: int
    process: str
    record: Record


class State(Message, frozen=True):
    """What a process did just before it was killed."""

    job: int
    process: str
    pid: int
    state: str
    wchan: str


class Ended(Message, frozen=True, tag="end"):
    """A process is gone; `text` where it could not even be started."""

    job: int
    process: str
    text: str = ""
    signal: int | None = None
    status: int | None = None
    killed: bool = False
    """By the agent."""
    tail: str = ""


class NodeReport(Message, frozen=True, tag="report"):
    """What the host's own check found; `text` where that was no report."""

    job: int
    report: dict[str, Any] | None
    text: str


class Reached(Message, frozen=True):
    """The port that is held, or was reached; 0: it was not, and why."""

    job: int
    port: int
    text: str
    elapsed_s: float


class Refused(Message, frozen=True):
    text: str


class Left(Struct, frozen=True):
    """A process that did not go."""

    pid: int
    start_ticks: int
    worker: str
    target: str
    state: str
    wchan: str


class Bye(Message, frozen=True):
    why: str
    left: tuple[Left, ...]


AnyMessage = Ready | HelloBack | Tock | Torch | Heard | State | Ended | NodeReport | Reached | Refused | Bye
_DECODER = msgspec.json.Decoder(AnyMessage)


def decode(line: bytes) -> AnyMessage:
    """One message; raise ProtocolError for whatever else it is."""
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"a line of {len(line)} bytes")
    try:
        message: AnyMessage = _DECODER.decode(line)
        if isinstance(message, Heard):
            records.check(message.record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(str(error)) from None
    return message
