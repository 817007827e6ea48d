"""What is not alike on all hosts, and which failure it explains. Pure.

A job needs the same torch, NCCL and settings everywhere; where two groups of hosts work inside and not with each
other, the fact that tells exactly these groups apart is the first place to look (NCCL issue 1634: one side loaded a
network plugin, the other did not, and nothing said so).
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from probe.cluster.hosts import fold
from probe.cluster.model import Skew, SkewGroup

Values = Mapping[str, str]
"""By key: what one host says."""

HARMLESS = ("kernel", "python", "cores", "interface")
"""Listed, and no finding by themselves: jobs run well across them."""
PER_HOST = ("NCCL_HOSTID",)
"""Differ on purpose: never compared."""
ABSENT = "not set"
"""Of a variable. Whoever has not said anything of a version, because it was lost before, is in no group."""


def groups(values: Mapping[str, Values]) -> tuple[Skew, ...]:
    """Every key on which hosts differ; `values` by host."""
    keys = dict.fromkeys(key for found in values.values() for key in found if key not in PER_HOST)
    skews = []
    for key in keys:
        by_value: dict[str, list[str]] = {}
        for host, found in values.items():
            if key in found or key.isupper():
                by_value.setdefault(found.get(key, ABSENT), []).append(host)
        if len(by_value) > 1:
            ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
            skews.append(Skew(key, tuple(SkewGroup(value, tuple(hosts)) for value, hosts in ordered)))
    return tuple(skews)


def in_words(skew: Skew) -> str:
    """``hosts gpu[01-05]: NCCL 2.28.9, gpu[06-11]: 2.27.3``."""
    return f"{skew.key}: " + "; ".join(f"{group.value} on {fold(group.hosts)}" for group in skew.groups)


def explains(skews: Iterable[Skew], parts: Sequence[Iterable[str]]) -> list[Skew]:
    """The skews that tell `parts` (disjoint sets of hosts) apart: one value in each, none in two of them."""
    sets = [set(part) for part in parts]
    found = []
    for skew in skews:
        value_of = {host: group.value for group in skew.groups for host in group.hosts}
        values = [{value_of.get(host) for host in part} for part in sets]
        if all(len(one) == 1 and None not in one for one in values) and len(set.union(*values)) == len(values):
            found.append(skew)
    return found


class Clock(NamedTuple):
    """How far a host's clock is from ours."""

    offset_s: float
    round_trip_s: float


CLOCK_S = 1.0
"""More than this confuses logs, tokens and certificates; NTP keeps hosts within milliseconds of each other."""


def clocks(known: Mapping[str, Clock]) -> dict[str, float]:
    """The hosts whose clock is off by more than `CLOCK_S`, whatever the round trip hides, and by how much.

    Against the median of all, so that a wrong clock of the controller's own accuses nobody.
    """
    middle = median(clock.offset_s for clock in known.values()) if len(known) > 2 else 0.0
    return {
        host: clock.offset_s - middle
        for host, clock in known.items()
        if abs(clock.offset_s - middle) - clock.round_trip_s / 2 > CLOCK_S
    }
