"""Which hosts and links keep a world from working: decides which groups to test next, and what came of it.

::

    local --> world --passed--> done
                |
           ring (or one random matching)
                |
           pairs: suspects x certified, components x components, failing links again, the condemned together
                |                                                        ^
           confirm: a world of the survivors --passed--> done            |
                +--failed--> halves: which subset fails, down to a pair -+

Pure: no I/O, no clock, and no randomness but the seed's. Every round is a set of disjoint groups, which can be tested
at the same time. Over 300 lines because one object leads from the first round to the diagnosis, in words; what the
answers prove is `probe.cluster.evidence`'s, which pairs to ask next `probe.cluster.pairing`'s.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from itertools import pairwise
from math import ceil, log2
from random import Random
from statistics import median

from msgspec import Struct

from probe.cluster.evidence import Evidence, Pair, Reading, limit, pair, speed
from probe.cluster.pairing import Pairing

PATIENCE = {"thorough": 2, "fast": 1}
"""How many rounds the condemned are tested together without any passing before they are believed to be broken.

Such a round lasts as long as a test may hang. Two find every partition in two (3,000 simulated) and all but 0.5 % of
those in three, where two or three hosts of a kind among many may never meet.
"""
TIRED = 2
"""How many times a world of certified hosts may fail without anything new that explains it."""

FEW = 8
"""Hosts of which all pairs are tested in a few rounds: sooner than a world that found nothing has failed again."""


class Kind(StrEnum):
    LOCAL = "local"
    WORLD = "world"
    RING = "ring"
    MATCHING = "matching"
    SUSPECTS = "suspects"
    """Pairs in which one host at least is certified."""
    CONDEMNED = "condemned"
    """Pairs of hosts that nobody vouches for."""
    HALVES = "halves"
    """Groups of certified hosts whose world fails all the same."""
    CONFIRM = "confirm"


class Round(Struct, frozen=True):
    """Groups of hosts to test at the same time; no host is in two of them."""

    n: int
    """From 1; a repeated round counts again."""
    kind: Kind
    groups: tuple[tuple[int, ...], ...]


class Result(Struct, frozen=True):
    """What came of one group, in the order of `Round.groups`."""

    ok: bool | None
    """None: could not be tested, nothing is concluded."""
    absent: tuple[int, ...] = ()
    """Hosts known not to have taken part: that speaks against them, not against their partners."""
    wrong: tuple[int, ...] = ()
    """Hosts whose data was wrong, by their signatures."""
    busbw_gbps: float | None = None
    note: str = ""


class Link(Struct, frozen=True):
    a: int
    b: int
    state: str
    """``bad`` or ``slow``."""
    evidence: str
    busbw_gbps: float | None = None


class Diagnosis(Struct, frozen=True):
    """What is known; hosts by index, evidence in words."""

    bad: Mapping[int, str]
    slow: Mapping[int, str]
    absent: Mapping[int, str]
    undetermined: Mapping[int, str]
    """Neither certified nor condemned: not known to be healthy, not blamed."""
    left_out: Mapping[int, str]
    """Certified, and yet not to be in one job with the others: blameless ends of bad links, the smaller partitions."""
    links: tuple[Link, ...]
    pairs: tuple[Pair, ...]
    """Pairs that failed and of which neither host could be certified."""
    partitions: tuple[tuple[int, ...], ...]
    """Groups that work inside and not with each other, the largest first; none or at least two."""
    confirmed: tuple[int, ...]
    """The hosts of the world that passed; empty: none did."""
    certified: frozenset[int]


def bound(hosts: int, repeat: int = 1) -> int:
    """The most rounds that will be asked for.

    16 for all that does not grow with the hosts; 12 for each halving of them: merging components takes one or two
    rounds for each, finding a pair in a world at most three, and that is done at most three times.
    """
    return repeat * (16 + 12 * ceil(log2(max(2, hosts))))


def localise(
    hosts: int,
    *,
    strategy: str = "thorough",
    repeat: int = 1,
    local: bool = True,
    min_busbw_gbps: float | None = None,
    leaves: Sequence[object] | None = None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Generator[Round, Sequence[Result], Diagnosis]:
    """Yield rounds, be sent their results, return the diagnosis; see `Planner`, which can be asked at any time."""
    planner = Planner(
        hosts,
        strategy=strategy,
        repeat=repeat,
        local=local,
        min_busbw_gbps=min_busbw_gbps,
        leaves=leaves,
        names=names,
        seed=seed,
    )
    return planner.rounds()


class BoundReached(Exception):
    """No more rounds: what is not known stays so."""


Asking = Generator[Round, Sequence[Result], list[bool | None]]
Steps = Generator[Round, Sequence[Result], None]


class Planner:
    """The rounds of one localisation, and what is known so far."""

    strikes = 2
    """Certified partners a host must fail with to be condemned; tests show what one would do."""
    pairing = Pairing

    def __init__(
        self,
        hosts: int,
        *,
        strategy: str = "thorough",
        repeat: int = 1,
        local: bool = True,
        min_busbw_gbps: float | None = None,
        leaves: Sequence[object] | None = None,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """`repeat`: a group passes when it passed that many times.

        The same round is then asked for again, without the groups that failed. `leaves`: where each host is attached;
        partners are taken from elsewhere. `names`: for the words.
        """
        self._hosts = hosts
        self._patience = PATIENCE[strategy]
        self._fast = strategy == "fast"
        self._repeat = repeat
        self._local = local
        self._least_gbps = min_busbw_gbps
        self._leaves = leaves
        self._names = names or [str(host) for host in range(hosts)]
        self._random = Random(seed)  # noqa: S311 - shuffles hosts
        self._works = Evidence(strikes=self.strikes, repeated=repeat > 1)
        self._measured: list[dict[Pair, float]] = []
        self._untested: Counter[int] = Counter()
        self._n = 0
        self._bad: dict[int, str] = {}
        self._absent: dict[int, str] = {}
        self._slow: dict[int, str] = {}
        self._confirmed: tuple[int, ...] = ()
        self._world_failed = False
        self._world_slow = False
        self._world_gbps: float | None = None
        self._settled = False
        """The condemned had their chance to be a partition."""

    # ---- the order of things -----------------------------------------------------------------------------------------

    def rounds(self) -> Generator[Round, Sequence[Result], Diagnosis]:
        with suppress(BoundReached):
            yield from self._steps()
        return self.diagnosis()

    def _steps(self) -> Steps:
        if self._local:
            yield from self._ask(Kind.LOCAL, [(host,) for host in self._present()])
        yield from self._worlds(Kind.WORLD)
        if self._confirmed or len(self._present()) < 2:
            return
        yield from self._matching() if self._fast else self._ring()
        yield from self._pairs()
        if len(self._present()) <= FEW and self._world_failed and self._survivors() == self._present():
            yield from self._halves(self._present())
        yield from self._confirm()

    def _worlds(self, kind: Kind) -> Steps:
        """A world of all, and again without those it named, which may be all that was wrong."""
        while hosts := self._present():
            yield from self._world(kind, hosts)
            if self._confirmed or hosts == self._present():
                return
            kind = Kind.CONFIRM

    def _confirm(self) -> Steps:
        failed_for_nothing = 0
        while failed_for_nothing < TIRED:
            hosts = self._survivors()
            only_slow = self._world_slow and not self._world_failed
            if len(hosts) < 2 or (only_slow and hosts == self._present()):
                return
            before = self._found()
            yield from self._world(Kind.CONFIRM, hosts)
            if self._confirmed:
                return
            if self._found() == before:
                yield from self._halves(hosts)
                yield from self._pairs()
            failed_for_nothing += self._found() == before

    def _ring(self) -> Steps:
        """The links that a job's own ring uses: every second, the others, and the one left over of an odd number."""
        hosts = self._present()
        edges = list(pairwise(hosts)) + ([(hosts[-1], hosts[0])] if len(hosts) > 2 else [])
        even = len(hosts) // 2 * 2
        for groups in (edges[:even:2], edges[1:even:2], edges[even:]):
            if groups:
                yield from self._ask(Kind.RING, groups)

    def _matching(self) -> Steps:
        hosts = self._shuffled(self._present())
        yield from self._ask(Kind.MATCHING, list(zip(hosts[::2], hosts[1::2], strict=False)))

    def _pairs(self) -> Steps:
        """Rounds of pairs until no question is open but whether the condemned are a partition: that has `PATIENCE`."""
        idle, known, self._settled = 0, set[int](), False
        while True:
            condemned = set(self._reading().condemned)
            idle = 0 if condemned - known else idle  # whoever is new may be one of theirs
            known |= condemned
            chosen = self._pairing(together=idle < self._patience)
            if not (chosen.sure or chosen.together):
                self._settled = True
                return
            verdicts = yield from self._ask(Kind.SUSPECTS if chosen.sure else Kind.CONDEMNED, chosen.pairs)
            if chosen.together:
                passed = {group for group, ok in zip(chosen.pairs, verdicts, strict=True) if ok}
                idle = 0 if passed & chosen.together else idle + 1

    def _pairing(self, *, together: bool) -> Pairing:
        reading, pace, fast = self._reading(), self._pace(), self._speed()
        chosen = self.pairing(self._works, reading, self._untested, self._random, self._leaves)
        chosen.suspects(self._works, reading)
        chosen.bridges()
        chosen.links(reading, explains=self._world_failed)
        settled = len(chosen.pairs)
        chosen.suspects(fast, pace)
        chosen.links(pace, explains=self._world_slow)
        if len(chosen.pairs) > settled:
            chosen.controls()
        if together:
            chosen.condemned()
        if together or reading.certified:
            chosen.suspects_together(counted=not reading.certified)
        return chosen

    def _halves(self, hosts: Sequence[int]) -> Steps:
        """Narrow a world that fails though its hosts are certified down to pairs, all failing groups at once.

        Two halves that pass leave what is across: their quarters, joined straight and then crosswise, hold all of it.
        """
        failing = [self._shuffled(hosts)]
        while failing := [group for group in failing if len(group) > 2]:
            whole, failing = [_quarters(group) for group in failing], []
            for other in (1, 2, 3):  # the quarter that is joined to the first; the remaining two are the other half
                halves = [half for quarters in whole for half in _halved(quarters, other)]
                broken = yield from self._broken(halves)
                failing += [half for half, fails in zip(halves, broken, strict=True) if fails]
                whole = [quarters for at, quarters in enumerate(whole) if not any(broken[2 * at : 2 * at + 2])]
                if not whole:
                    break

    def _broken(self, groups: Sequence[list[int]]) -> Generator[Round, Sequence[Result], list[bool]]:
        """Which of `groups` fail; a pair that is known to work is not asked for again."""
        asked = [
            tuple(group)
            for group in groups
            if len(group) > 2 or (len(group) == 2 and group[1] not in self._works.passed[group[0]])
        ]
        verdicts = (yield from self._ask(Kind.HALVES, asked)) if asked else []
        failed = {group for group, ok in zip(asked, verdicts, strict=True) if ok is False}
        return [tuple(group) in failed for group in groups]

    def _world(self, kind: Kind, hosts: Sequence[int]) -> Steps:
        self._world_gbps = None
        (ok,) = yield from self._ask(kind, [tuple(hosts)])
        slow = self._too_slow(self._world_gbps)
        self._confirmed = tuple(hosts) if ok and not slow else ()
        self._world_failed |= ok is False
        self._world_slow |= bool(ok) and slow

    def _too_slow(self, gbps: float | None) -> bool:
        """So slow a group certifies nobody: with most of its packets lost a host may pass, after half a minute."""
        return self._least_gbps is not None and gbps is not None and gbps < self._least_gbps

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _ask(self, kind: Kind, groups: Sequence[tuple[int, ...]]) -> Asking:
        """Ask for one round, as often as wanted; a group passes when it passed every time."""
        verdicts: list[bool | None] = [None] * len(groups)
        gbps: dict[int, float] = {}
        left = list(range(len(groups)))
        for _ in range(self._repeat):
            if not left:
                break
            if self._n == bound(self._hosts, self._repeat):
                raise BoundReached
            self._n += 1
            results = yield Round(self._n, kind, tuple(groups[at] for at in left))
            for at, result in zip(left, results, strict=True):
                verdicts[at] = self._heard(kind, groups[at], result)
                if result.busbw_gbps is not None:
                    gbps[at] = min(result.busbw_gbps, gbps.get(at, result.busbw_gbps))
            left = [at for at in left if verdicts[at]]
        for at, (group, ok) in enumerate(zip(groups, verdicts, strict=True)):
            if ok is not None and not (ok and len(group) > 2 and self._too_slow(gbps.get(at))):
                self._works.add(group, ok=ok)
        self._clock(kind, {groups[at]: each for at, each in gbps.items() if verdicts[at]})
        return verdicts

    def _heard(self, kind: Kind, group: tuple[int, ...], result: Result) -> bool | None:
        """The verdict on the group; what one host is to blame for says nothing about the others."""
        note = f": {result.note}" if result.note else ""
        where = self._where(kind, group)
        for host in result.absent:
            self._absent.setdefault(host, f"took no part in {where}{note}")
        for host in result.wrong:
            self._bad.setdefault(host, f"its data was wrong in {where}, by its signature{note}")
        if result.absent or result.wrong:
            return None
        if result.ok is False and kind is Kind.LOCAL:
            self._bad.setdefault(group[0], f"failed {where}, with no other host involved{note}")
        if result.ok is None and len(group) == 2:
            self._untested.update(group)
        return result.ok

    def _where(self, kind: Kind, group: Sequence[int]) -> str:
        if kind is Kind.LOCAL:
            return "its local round"
        if len(group) == 2:
            return f"the pair {self._name(group[0])}-{self._name(group[1])}"
        return f"{'a group' if kind is Kind.HALVES else 'the world'} of {len(group)}"

    def _clock(self, kind: Kind, gbps: Mapping[tuple[int, ...], float]) -> None:
        """Keep what a round measured: single hosts are judged at once, pairs with all others of the job."""
        if kind in {Kind.WORLD, Kind.CONFIRM}:
            self._world_gbps = next(iter(gbps.values()), None)
        elif kind is Kind.LOCAL:
            below = limit(list(gbps.values())) or 0.0
            for (host,), each in gbps.items():
                if each < below:
                    usual = median(gbps.values())
                    self._slow[host] = f"{each:.3g} GB/s inside, where the median of the hosts is {usual:.3g} GB/s"
        if pairs := {pair(*group): each for group, each in gbps.items() if len(group) == 2}:
            self._measured.append(pairs)

    # ---- what is known -----------------------------------------------------------------------------------------------

    def diagnosis(self) -> Diagnosis:
        """What is known now, also in the middle of the rounds: whoever is not decided is undetermined."""
        reading, pace = self._reading(), self._pace()
        certified = reading.certified.union(self._confirmed)
        guilty = reading.condemned if self._settled or reading.one_culprit else {}
        bad = {host: self._failed(partners) for host, partners in guilty.items()} | self._bad
        slow = {host: self._was_slow(host, partners) for host, partners in pace.condemned.items()} | self._slow
        doubted = [host for host in self._present() if host not in certified and host not in bad]
        return Diagnosis(
            bad=bad,
            slow={host: slow[host] for host in sorted(slow) if host not in bad},
            absent={host: words for host, words in self._absent.items() if host not in bad},
            undetermined={host: self._doubt(host, certified) for host in doubted},
            left_out=self._left_out(reading, pace),
            links=tuple(sorted(self._links(reading, pace), key=lambda link: (link.a, link.b))),
            pairs=tuple(sorted(link for link in self._works.failures if {*link} <= {*reading.suspects})),
            partitions=reading.groups if len(reading.groups) > 1 else (),
            confirmed=self._confirmed,
            certified=certified,
        )

    def _present(self) -> list[int]:
        return [host for host in range(self._hosts) if host not in self._bad and host not in self._absent]

    def _reading(self) -> Reading:
        return self._works.read(self._present())

    def _speed(self) -> Evidence:
        return speed(self._measured, self._least_gbps)

    def _pace(self) -> Reading:
        """The reading of speed, of the hosts that were measured: who was not is no suspect."""
        fast = self._speed()
        return fast.read(host for host in self._present() if fast.passed[host] or fast.failed[host])

    def _survivors(self) -> list[int]:
        return self._able(self._reading(), self._pace())

    def _able(self, reading: Reading, pace: Reading) -> list[int]:
        """Who may make a job together: the largest group, without the slow, and of each bad link one end."""
        found = set(reading.groups[0]) - self._slow.keys() - pace.condemned.keys()
        links = [{*link} for link in self._bad_links(reading) | self._slow_links(pace)]
        while links := [link for link in links if link <= found]:
            ends = Counter(host for link in links for host in link)
            found.remove(max(ends, key=lambda host: (ends[host], host)))
        return sorted(found)

    def _bad_links(self, reading: Reading) -> dict[Pair, int]:
        return reading.links(explains=self._world_failed)

    def _slow_links(self, pace: Reading) -> dict[Pair, int]:
        return pace.links(explains=self._world_slow)

    def _found(self) -> tuple[object, ...]:
        """All that can explain a failing world: as long as it grows, there is something to go on."""
        known = self.diagnosis()
        return known.bad, known.absent, known.slow, known.links, known.partitions

    def _shuffled(self, hosts: Iterable[int]) -> list[int]:
        found = list(hosts)
        self._random.shuffle(found)
        return found

    # ---- in words ----------------------------------------------------------------------------------------------------

    def _name(self, host: int) -> str:
        return self._names[host]

    def _named(self, hosts: Iterable[int]) -> str:
        """At most four by name."""
        names = [self._name(host) for host in hosts]
        shown = names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]
        return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)

    def _failed(self, partners: Sequence[int]) -> str:
        """``failed with 4 and 7, both certified``."""
        certified = "both certified" if len(partners) == 2 else "all certified"
        return f"failed with {self._named(partners)}, {certified}"

    def _doubt(self, host: int, certified: frozenset[int]) -> str:
        failed, passed = self._works.failed[host], self._works.passed[host]
        if not failed:
            return "not tested with another host" if not passed else "passed, but too seldom to be sure"
        partners = ", ".join(
            f"{self._name(other)} ({'certified' if other in certified else 'not certified'})"
            for other in sorted(failed)
        )
        return f"failed with {partners}: not enough yet to tell whose fault it is"

    def _was_slow(self, host: int, partners: Sequence[int]) -> str:
        speeds = [gbps for measured in self._measured for link, gbps in measured.items() if host in link]
        return f"{max(speeds):.3g} GB/s at best, slow with {self._named(partners)}, who are fast with others"

    def _links(self, reading: Reading, pace: Reading) -> Iterable[Link]:
        for (a, b), count in self._bad_links(reading).items():
            times = "once, as did the world" if count == 1 else f"{count} times"
            words = f"{self._name(a)}-{self._name(b)} failed {times}; both ends work with others"
            yield Link(a, b, "bad", words)
        for a, b in self._slow_links(pace):
            gbps = [measured[a, b] for measured in self._measured if (a, b) in measured]
            words = f"{self._name(a)}-{self._name(b)}: {max(gbps):.3g} GB/s at best; both ends are fast with others"
            yield Link(a, b, "slow", words, max(gbps))

    def _left_out(self, reading: Reading, pace: Reading) -> dict[int, str]:
        largest, kept = set(reading.groups[0]), {*self._able(reading, pace), *pace.condemned, *self._slow}
        return {
            host: "an end of a bad link, itself without fault" if host in largest else "works in another partition"
            for host in sorted(reading.certified - kept)
        }


def _quarters(group: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    half, rest = group[: len(group) // 2], group[len(group) // 2 :]
    one, other = len(half) // 2, len(rest) // 2
    return list(half[:one]), list(half[one:]), list(rest[:other]), list(rest[other:])


def _halved(quarters: Sequence[list[int]], other: int) -> tuple[list[int], list[int]]:
    rest = [quarter for at, quarter in enumerate(quarters) if at not in {0, other}]
    return sorted(quarters[0] + quarters[other]), sorted(rest[0] + rest[1])
