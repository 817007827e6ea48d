"""One round of pairs, chosen by what is open: each host at most once, and partners that can be trusted.

::

    suspects x certified       is the host broken?          sure: every answer decides something
    component x component      do these work together?      sure
    a failing link again       or was it chance?            sure
    slow x fast                is it the host or the link?  sure
    the condemned together     or are they a partition?     hopeful: only a pass tells something
    suspects together          while they wait              hopeful
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from random import Random

from probe.cluster.evidence import ENOUGH, PARTITION_PAIRS, Evidence, Pair, Reading

UNTESTED = 3
"""How often a pair of a host may come to nothing before it is asked no more: its rounds cost everybody's time."""


class Pairing:
    """A round in the making."""

    def __init__(
        self,
        works: Evidence,
        reading: Reading,
        untested: Counter[int],
        random: Random,
        leaves: Sequence[object] | None = None,
    ) -> None:
        self._works = works
        self._reading = reading
        self._random = random
        self._leaves = leaves
        hosts = {*reading.certified, *reading.condemned, *reading.suspects}
        self._free = {host for host in hosts if untested[host] < UNTESTED}
        self.pairs: list[Pair] = []
        self.sure = False
        """Some pair decides something, however it ends."""
        self.together: set[Pair] = set()
        """Pairs of hosts that nobody vouches for."""

    # ---- the questions -----------------------------------------------------------------------------------------------

    def suspects(self, evidence: Evidence, reading: Reading) -> None:
        """Each suspect with a certified partner of its own."""
        self.sure |= self._match(reading.suspects, evidence, reading, reading.strikes)

    def _match(self, hosts: Iterable[int], evidence: Evidence, reading: Reading, strikes: int) -> bool:
        """Give `hosts` certified partners that they have not met, of groups in which they failed less than `strikes`.

        Whether any got one.
        """
        before = len(self.pairs)
        pool = [host for component in reading.components for host in self._fit(component)]
        for suspect in self._fit(hosts):
            met = reading.met(evidence.failed[suspect])
            able = [host for host in pool if met[reading.group_of[host]] < strikes]
            if (partner := self._partner(suspect, able, evidence)) is not None:
                pool.remove(partner)
                self._take(suspect, partner)
        return len(self.pairs) > before

    def bridges(self) -> None:
        """Each component with a larger one that it may work with; between two that failed, enough pairs to be sure.

        Two that never failed with each other ride along in a round that is made anyway: their world would say the same.
        """
        rooms = [self._fit(component) for component in self._reading.components]
        asked: set[int] = set()
        for enough in (2, PARTITION_PAIRS):  # first find out where it belongs, then make sure where it does not
            for place in range(1, len(rooms)):
                larger = (
                    at for at in range(place) if place not in asked and not self._reading.apart(at, place, enough)
                )
                for at in larger:
                    if self._bridge(rooms, at, place, enough):
                        self.sure |= (at, place) in self._reading.across or self._reading.apart(0, place, 2)
                        asked.add(place)

    def links(self, reading: Reading, *, explains: bool) -> None:
        """Links that failed, but not often enough to be called bad."""
        bad = reading.links(explains=explains)
        for a, b in reading.doubted.keys() - bad.keys():
            if self._may(a, b):
                self._take(a, b)
                self.sure = True

    def condemned(self) -> None:
        """The condemned with each other, and with the smaller components: a pass means that they are no wrecks."""
        smaller = sorted({place for places in self._reading.across for place in places if place})
        rooms = [self._reading.components[place] for place in smaller]
        condemned = self._fit(self._reading.condemned)
        for host in condemned:
            strangers = (room for room in rooms if len(self._works.failed[host].intersection(room)) < 2)
            others = [other for room in strangers for other in room] + condemned
            self._together(host, others)
        if self.pairs:  # a round is made anyway: who is idle in it hears one more opinion
            self._match(condemned, self._works, self._reading, self._reading.strikes + 1)

    def suspects_together(self, *, counted: bool) -> None:
        suspects = self._fit(self._reading.suspects)
        for host in suspects:
            self._together(host, suspects, counted=counted)

    def controls(self) -> None:
        """Idle hosts in pairs, so that there is a median of this round, under its load, to judge a pair by."""
        idle = self._fit(self._reading.certified)
        for a, b in zip(idle[::2], idle[1::2], strict=False):
            if len(self.pairs) < 2 * ENOUGH:
                self._take(a, b)

    # ---- choosing ----------------------------------------------------------------------------------------------------

    def _partner(self, host: int, pool: Sequence[int], evidence: Evidence) -> int | None:
        """The first of the pool not met before, of another leaf if there is one."""
        strangers = (other for other in pool if other not in evidence.failed[host] and self._may(host, other))
        if self._leaves is None:
            return next(strangers, None)
        found = list(strangers)
        return next((other for other in found if self._elsewhere(host, other, evidence)), found[0] if found else None)

    def _elsewhere(self, host: int, other: int, evidence: Evidence) -> bool:
        assert self._leaves is not None
        return self._leaves[other] not in {self._leaves[met] for met in (host, *evidence.failed[host])}

    def _bridge(self, rooms: Sequence[list[int]], larger: int, place: int, enough: int) -> bool:
        """Pairs across two components: one if none failed so far, else what is missing, of hosts not asked before."""
        failed = self._reading.across.get((larger, place), ())
        wanted = max(1, enough - len(failed)) if failed else 1
        asked = {host for link in failed for host in link}
        before = len(self.pairs)
        for a in sorted(rooms[place], key=lambda host: host in asked):
            others = sorted(rooms[larger], key=lambda host: host in asked) if failed else rooms[larger]
            b = next((b for b in others if b not in self._works.failed[a] and self._may(a, b)), None)
            if b is not None:
                rooms[place].remove(a)
                rooms[larger].remove(b)
                self._take(a, b)
            if len(self.pairs) - before == wanted:
                return True
        return len(self.pairs) > before

    def _together(self, host: int, others: Iterable[int], *, counted: bool = True) -> None:
        if (
            other := next((o for o in others if o not in self._works.failed[host] and self._may(host, o)), None)
        ) is None:
            return
        self._take(host, other)
        if counted:
            self.together.add(self.pairs[-1])

    def _may(self, a: int, b: int) -> bool:
        return a != b and a in self._free and b in self._free

    def _take(self, a: int, b: int) -> None:
        self._free -= {a, b}
        self.pairs.append((a, b))

    def _fit(self, hosts: Iterable[int]) -> list[int]:
        """The free ones, in no order."""
        found = [host for host in hosts if host in self._free]
        self._random.shuffle(found)
        return found
