"""What a gate knows so far. Filled by `probe.cluster.gate`, read at any moment by whoever must report."""

import time
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from probe.cluster.hosts import Host
from probe.cluster.localise import Planner
from probe.cluster.member import Member
from probe.cluster.model import HostState, Phase, RoundReport, WorldReport
from probe.cluster.node import NodeFinding
from probe.model import Scalar, Status


class Problem(Struct, frozen=True):
    """What keeps one host out, or, as a warning, does not."""

    state: HostState
    check: str
    """``gate.reach`` and so on: where it was seen."""
    summary: str
    data: Mapping[str, Scalar] = {}
    """The evidence by which the catalogue knows it."""
    code: str = ""
    """A fault of the host's own report, with its remedy and who; empty: the catalogue's to say."""
    remedy: str = ""
    who: str = ""
    status: Status = Status.FAIL
    """WARN: it does not keep the host out."""
    names_hosts: bool = False
    """The summary says itself which hosts it is about."""


class Ledger(Struct):
    """All of it, in one place; nothing in here is ever taken back."""

    hosts: Sequence[Host]
    launcher: str
    phase: Phase = Phase.REACH
    members: dict[str, Member] = field(default_factory=dict)
    """Those that were reached."""
    nodes: dict[str, NodeFinding] = field(default_factory=dict)
    out: dict[str, Problem] = field(default_factory=dict)
    """Hosts that take no further part, and why."""
    warnings: list[tuple[str, Problem]] = field(default_factory=list)
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    """What the records of a world or round said against one host alone: reason and words."""
    players: list[Member] = field(default_factory=list)
    """Those that the planner knows, by its numbers."""
    planner: Planner | None = None
    finished: bool = False
    """The planner has nothing more to ask."""
    rounds: list[RoundReport] = field(default_factory=list)
    world: WorldReport | None = None
    world_note: str = ""
    """What the last world that failed said."""
    setting: tuple[Problem, tuple[str, ...]] | None = None
    """What the user has asked for that kept these hosts from being tested, and none of them is to blame for."""
    backend: str = ""
    nproc: int = 0
    least_gbps: float | None = None
    """A world slower than this is not ready: as asked, else by what the links carry, where that is known."""
    local_gbps: dict[str, float] = field(default_factory=dict)
    """busbw within each host, where it has several ranks."""
    notes: list[str] = field(default_factory=list)
    testing: str = ""
    """What is being tested now."""
    over: bool = False
    """The budget, or somebody, ended it before it was done."""
    changed: Callable[[], None] = lambda: None
    began_at: float = field(default_factory=time.monotonic)

    def leave_out(self, host: str, problem: Problem) -> None:
        self.out.setdefault(host, problem)
        self.changed()

    def warn(self, host: str, problem: Problem) -> None:
        self.warnings.append((host, replace(problem, status=Status.WARN)))

    def now_testing(self, words: str) -> None:
        self.testing = words
        self.changed()

    @property
    def taking_part(self) -> list[Member]:
        return [
            self.members[host.name] for host in self.hosts if host.name in self.members and host.name not in self.out
        ]
