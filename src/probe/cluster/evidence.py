"""What tests of groups prove: who is certified, who is condemned, which links fail, and who works with whom.

::

    Evidence (pairs that passed, pairs that failed)  --read-->  Reading

A pair that passes certifies both its hosts, for neither can be broken. A pair that fails says nothing about either
until the other is certified: a host that never passed is condemned after failures with two different certified
partners, and a failure between two certified hosts is their link's. Speed is evidence of the same kind: see `speed`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from statistics import median

from msgspec import Struct, structs

Pair = tuple[int, int]

PARTITION_PAIRS = 4
"""How many pairs must fail between two groups before they are a partition: two bad links cut a ring in two as well."""
ENOUGH = 4
"""Measurements that a median needs to judge one of them."""
OUTLIER = 3.5 * 1.4826
"""Median absolute deviations: a modified z-score of 3.5 (Iglewicz and Hoaglin, 1993)."""
SLOW = 0.7
"""Of the median: what deviates less is no reason to stop a job, however even the others are."""


def pair(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)


class Reading(Struct, frozen=True, dict=True):
    """What the evidence says about the hosts in play: each is certified, condemned or suspect."""

    certified: frozenset[int]
    components: tuple[tuple[int, ...], ...]
    """Certified hosts joined by pairs that passed; the largest first."""
    failing: Mapping[Pair, int]
    """Pairs of certified hosts that failed and never passed, with how often."""
    across: Mapping[Pair, tuple[Pair, ...]]
    """Those that join two components, by the components' places."""
    strikes: int
    """How many failures condemn."""
    condemned: Mapping[int, tuple[int, ...]] = {}
    """With the certified partners it failed with."""
    suspects: tuple[int, ...] = ()

    def apart(self, one: int, other: int, pairs: int = PARTITION_PAIRS) -> bool:
        """Whether two components are known not to work together: `pairs` failed, of two hosts each at least."""
        failed = self.across.get(pair(one, other), ())
        sizes = len(self.components[min(one, other)]), len(self.components[max(one, other)])
        hosts = [len(set(side)) for side in zip(*failed, strict=True)]
        enough = all(seen >= min(2, size) for seen, size in zip(hosts, sizes, strict=False))
        return bool(failed) and enough and len(failed) >= min(pairs, sizes[0] * sizes[1])

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The largest component with all that may well work with it, and each of those that do not."""
        places = range(1, len(self.components))
        others = [place for place in places if self.apart(0, place)]
        first = [host for place, hosts in enumerate(self.components) if place not in others for host in hosts]
        return tuple(sorted(first)), *(self.components[place] for place in others)

    @cached_property
    def group_of(self) -> dict[int, int]:
        return {host: at for at, hosts in enumerate(self.groups) for host in hosts}

    def met(self, partners: Iterable[int]) -> Counter[int]:
        """How many of `partners` are in each of the groups."""
        return Counter(self.group_of[host] for host in partners if host in self.group_of)

    def condemns(self, partners: Sequence[int]) -> bool:
        """Whether failures with these certified partners make a host guilty.

        Where there are groups that do not work together, failing with one of them only means not belonging to it.
        """
        met = self.met(partners) if len(self.groups) > 1 else {}
        everywhere = all(met[at] >= min(self.strikes, len(self.groups[at])) for at in range(len(self.groups)) if met)
        return len(partners) >= self.strikes and everywhere

    @property
    def one_culprit(self) -> bool:
        """Nobody else could be in a partition with the one that is condemned."""
        return len(self.condemned) == 1 and not self.suspects and not self.across

    def links(self, *, explains: bool) -> dict[Pair, int]:
        """The links that are bad, with how often they failed.

        A world that failed is a failure of its own for the only link that is found: it `explains` the world.
        """
        alone = explains and len(self.failing) == 1 and not self.condemned and not self.suspects
        return {link: count for link, count in self.doubted.items() if count >= self.strikes - alone}

    @property
    def doubted(self) -> dict[Pair, int]:
        """The failing pairs that no partition explains."""
        explained = {pair(*link) for places, links in self.across.items() if self.apart(*places) for link in links}
        return {link: count for link, count in self.failing.items() if link not in explained}


class Evidence:
    """Pairs that passed and pairs that failed, as they come."""

    def __init__(self, *, strikes: int = 2, repeated: bool = False) -> None:
        """`repeated`: faults may come and go; whoever failed with a host that works needs two partners, not one."""
        self._strikes = strikes
        self._repeated = repeated
        self._contradicted = False
        self.passed: defaultdict[int, set[int]] = defaultdict(set)
        self.failed: defaultdict[int, set[int]] = defaultdict(set)
        self.failures: Counter[Pair] = Counter()

    def add(self, group: Sequence[int], *, ok: bool) -> None:
        """Note how a group ended: if it passed, its ring passed; if it failed, only of a pair something is known."""
        if ok:
            for a, b in pairwise([*group, group[0]] if len(group) > 2 else group):
                self._contradicted |= pair(a, b) in self.failures
                self.passed[a].add(b)
                self.passed[b].add(a)
        elif len(group) == 2:
            a, b = group
            self._contradicted |= b in self.passed[a]
            self.failures[pair(a, b)] += 1
            self.failed[a].add(b)
            self.failed[b].add(a)

    def certifies(self, host: int) -> bool:
        doubted = self._repeated and any(self.passed[other] for other in self.failed[host])
        return len(self.passed[host]) > doubted

    def read(self, hosts: Iterable[int]) -> Reading:
        """What is known of `hosts`; those no longer in play still speak for and against their partners.

        Once a pair was seen both to pass and to fail, some failures here are nobody's fault, and one more condemns.
        """
        hosts = list(hosts)
        known = {host for host in list(self.passed) if self.certifies(host)}
        certified = known.intersection(hosts)
        components = self._components(sorted(certified))
        failing = {(a, b): n for (a, b), n in self.failures.items() if {a, b} <= certified and b not in self.passed[a]}
        reading = Reading(
            certified=frozenset(certified),
            components=components,
            failing=failing,
            across=_across(components, failing),
            strikes=self._strikes + self._contradicted,
        )
        struck = {host: tuple(sorted(self.failed[host] & known)) for host in hosts if host not in known}
        condemned = {host: partners for host, partners in struck.items() if reading.condemns(partners)}
        return structs.replace(
            reading, condemned=condemned, suspects=tuple(host for host in struck if host not in condemned)
        )

    def _components(self, hosts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        left, found = set(hosts), []
        for first in hosts:
            reached = edge = [first] if first in left else []
            left.discard(first)
            while edge:
                edge = [fresh for host in edge for fresh in _move(left, self.passed[host])]
                reached = reached + edge
            if reached:
                found.append(tuple(sorted(reached)))
        return tuple(sorted(found, key=lambda component: (-len(component), component)))


def _move(left: set[int], hosts: set[int]) -> set[int]:
    found = left & hosts
    left -= found
    return found


def _across(components: Sequence[Sequence[int]], failing: Iterable[Pair]) -> dict[Pair, tuple[Pair, ...]]:
    """Failing pairs by the places of the components they would join; of each the host of the larger stands first."""
    place = {host: at for at, hosts in enumerate(components) for host in hosts}
    found: defaultdict[Pair, list[Pair]] = defaultdict(list)
    for a, b in failing:
        if place[a] != place[b]:
            found[pair(place[a], place[b])].append((a, b) if place[a] < place[b] else (b, a))
    return {places: tuple(pairs) for places, pairs in found.items()}


# ---- speed -----------------------------------------------------------------------------------------------------------


def limit(speeds: Sequence[float]) -> float | None:
    """Below it one of `speeds` is slow; None: too few to judge."""
    if len(speeds) < ENOUGH:
        return None
    middle = median(speeds)
    spread = median(abs(speed - middle) for speed in speeds)
    return min(SLOW * middle, middle - OUTLIER * spread)


def speed(rounds: Sequence[Mapping[Pair, float]], least_gbps: float | None) -> Evidence:
    """The pairs of each round as slow (failed) or not (passed), judged by their own round.

    A round with too few pairs for a median is judged by all so far. A pair below `least_gbps` is slow in any case.
    """
    found = Evidence()
    everywhere = limit([gbps for measured in rounds for gbps in measured.values()])
    for measured in rounds:
        below = limit(list(measured.values())) or everywhere
        floor_gbps = max(below or 0.0, least_gbps or 0.0)
        if floor_gbps:
            for group, gbps in measured.items():
                found.add(group, ok=gbps >= floor_gbps)
    return found
