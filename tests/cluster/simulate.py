"""Simulated clusters: what a round's groups would have said, for the faults a cluster was given.

A world is a ring by default, as NCCL's: a bad link breaks it only between neighbours. A mesh breaks by any bad link
inside, as gloo's does when it connects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from random import Random

from probe.cluster.evidence import pair
from probe.cluster.localise import Diagnosis, Kind, Planner, Result, Round

GBPS = 40.0


@dataclass
class Cluster:
    """A cluster of `hosts` with its faults."""

    hosts: int
    bad: frozenset[int] = frozenset()
    sick: frozenset[int] = frozenset()
    """Bad when alone, too: the local round finds them."""
    links: frozenset[tuple[int, int]] = frozenset()
    classes: Mapping[int, int] = field(default_factory=dict)
    """Host -> class, 0 where none is given: hosts of two classes do not work together."""
    absent: frozenset[int] = frozenset()
    liars: frozenset[int] = frozenset()
    """Whose data is wrong, and whose signature says so."""
    shows: float = 1.0
    """How often a bad host fails."""
    alarms: float = 0.0
    """How often a test fails for no reason, of two hosts or of all."""
    untestable: float = 0.0
    """How often a group cannot be tested."""
    slow: Mapping[int, float] = field(default_factory=dict)
    slow_links: Mapping[tuple[int, int], float] = field(default_factory=dict)
    noise: float = 0.03
    crowd: int | None = None
    """With more groups at a time the network is full, and all have half the speed."""
    mesh: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.random = Random(self.seed)  # noqa: S311 - makes faults
        self.rounds: list[Round] = []

    def answer(self, asked: Round) -> list[Result]:
        self.rounds.append(asked)
        self.share = 0.5 if self.crowd is not None and len(asked.groups) > self.crowd else 1.0
        return [self.test(asked.kind, group) for group in asked.groups]

    def test(self, kind: Kind, group: Sequence[int]) -> Result:
        if self.random.random() < self.untestable:
            return Result(None)
        if absent := self.absent.intersection(group):
            return Result(False, absent=tuple(sorted(absent)))
        if kind is Kind.LOCAL:
            return Result(group[0] not in self.sick)
        if self.broken(group) or self.random.random() < self.alarms:
            return Result(False)
        if liars := self.liars.intersection(group):
            return Result(False, wrong=tuple(sorted(liars)))
        return Result(True, busbw_gbps=self.speed(group))

    def broken(self, group: Sequence[int]) -> bool:
        failing = [host for host in group if host in self.bad | self.sick and self.random.random() < self.shows]
        apart = len({self.classes.get(host, 0) for host in group}) > 1
        return bool(failing) or apart or any(link in self.links for link in self.used(group))

    def used(self, group: Sequence[int]) -> Iterable[tuple[int, int]]:
        if not self.mesh:
            return {pair(a, b) for a, b in pairwise([*group, group[0]])}
        return combinations(sorted(group), 2) if self.links else ()

    def speed(self, group: Sequence[int]) -> float:
        """That of the slowest part, give or take some noise."""
        parts = [self.slow.get(host, GBPS) for host in group]
        parts += [self.slow_links.get(link, GBPS) for link in self.used(group)] if self.slow_links else []
        return self.share * min(parts) * self.random.uniform(1 - self.noise, 1 + self.noise)


def run(planner: Planner, cluster: Cluster) -> Diagnosis:
    """All rounds of `planner` on `cluster`."""
    steps = planner.rounds()
    try:
        asked = next(steps)
        while True:
            asked = steps.send(cluster.answer(asked))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
