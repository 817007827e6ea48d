"""The gate's answer as ``--format json`` prints it: the schema of ``probe.gate/1`` is made from these types."""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct

from probe.model import Cause, Profile, Scalar


class GateVerdict(StrEnum):
    READY = "ready"
    READY_WITHOUT = "ready_without"
    """Some hosts can, and they are named; so are those that cannot."""
    NOT_READY = "not_ready"
    UNDETERMINED = "undetermined"


class HostState(StrEnum):
    READY = "ready"
    BAD = "bad"
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    SKEWED = "skewed"
    """Not like the others, and that is what keeps it out."""
    ABSENT = "absent"
    """Reached, and lost later."""
    BUSY = "busy"
    UNDETERMINED = "undetermined"
    """Not known to be healthy, and not blamed."""


class Phase(StrEnum):
    REACH = "reach"
    NODE = "node"
    WORLD = "world"
    LOCALISE = "localise"
    CONFIRM = "confirm"


class HostReport(Struct, frozen=True):
    host: str
    state: HostState
    reason: str
    """One sentence; empty where there is nothing to say."""
    evidence: tuple[str, ...]
    """What was observed, in words."""
    remedy: str
    facts: Mapping[str, Scalar]


class LinkReport(Struct, frozen=True):
    a: str
    b: str
    state: str
    """bad, slow, or undetermined: one of the two hosts, or the link."""
    evidence: str
    gbps: float | None = None


class SkewGroup(Struct, frozen=True):
    value: str
    hosts: tuple[str, ...]


class Skew(Struct, frozen=True):
    """One thing that is not alike on all hosts; the largest group first."""

    key: str
    groups: tuple[SkewGroup, ...]


class RoundReport(Struct, frozen=True):
    n: int
    kind: str
    groups: tuple[tuple[str, ...], ...]
    results: tuple[str, ...]
    """Of each group: passed (and how fast, where that matters), failed, or not tested, and why."""
    elapsed_s: float


class WorldReport(Struct, frozen=True):
    """The last world that passed."""

    hosts: int
    ranks: int
    backend: str
    rendezvous: str
    verified: int
    """All-reduces whose every word was compared, of each rank."""
    largest_bytes: int
    algbw_gbps: float | None
    busbw_gbps: float | None
    at_bytes: int
    """The size that the rates were measured with."""


class GateReport(Struct, frozen=True):
    """One run of ``probe gate``."""

    schema: str
    probe_version: str
    host: str
    """Where the gate ran."""
    profile: Profile
    """Of the hosts' own checks."""
    verdict: GateVerdict
    exit_code: int
    budget_s: float
    elapsed_s: float
    started_at: str
    causes: tuple[Cause, ...]
    launcher: str
    phase: Phase
    """How far it came."""
    hosts: tuple[HostReport, ...]
    links: tuple[LinkReport, ...]
    partitions: tuple[tuple[str, ...], ...]
    """Groups that work inside and not with each other, the largest first."""
    skew: tuple[Skew, ...]
    rounds: tuple[RoundReport, ...]
    clean_hosts: tuple[str, ...]
    """Those that can start a job together, in the order given; empty where none could be confirmed."""
    world: WorldReport | None = None
    notes: tuple[str, ...] = ()
