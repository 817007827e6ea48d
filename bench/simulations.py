"""The program that `bench.planner` runs with the interpreter under test: the planner on simulated clusters, as JSON.

Every number but the times follows from the seeds. `exact`: the hosts, links and partitions that were named are those
that are bad, no more and no less. `named after`: the round after which the diagnosis did not change any more; what
follows only confirms it.

::

    simulations.py     how many scenarios there are
    simulations.py 3   what came of the fourth
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the simulated clusters are the tests' own

from probe.cluster.evidence import pair
from probe.cluster.localise import Diagnosis, Planner, Round
from tests.cluster.simulate import GBPS, Cluster

RUNS = 200
RUNS_OF_1024 = 12
Fault = Callable[[int, Random, int], Cluster]
"""Makes a cluster of so many hosts, with faults at places drawn by the given generator, and a seed of its own."""


@dataclass(frozen=True)
class Scenario:
    name: str
    hosts: int
    fault: Fault
    options: dict[str, Any] = field(default_factory=dict)
    links_count: bool = True
    """False where tests fail for no reason: as in the table compared with, only hosts decide what is exact."""


def nodes(k: int, *, shows: float = 1.0, alarms: float = 0.0) -> Fault:
    """`k` broken hosts anywhere."""
    return lambda n, random, seed: Cluster(
        n, bad=frozenset(random.sample(range(n), k)), shows=shows, alarms=alarms, seed=seed
    )


def skew(k: int) -> Fault:
    """`k` hosts anywhere that work with each other only."""
    return lambda n, random, seed: Cluster(n, classes=dict.fromkeys(random.sample(range(n), k), 1), seed=seed)


def leaf(size: int) -> Fault:
    """One leaf of `size` neighbours without uplinks."""

    def make(n: int, random: Random, seed: int) -> Cluster:
        first = random.randrange(n // size) * size
        return Cluster(n, classes=dict.fromkeys(range(first, first + size), 1), seed=seed)

    return make


def links(k: int, broken: int = 0, *, mesh: bool = False) -> Fault:
    """`k` bad links, of the ring or of any two hosts (mesh), and `broken` hosts at none of their ends."""

    def make(n: int, random: Random, seed: int) -> Cluster:
        ends = [random.sample(range(n), 2) if mesh else [a, (a + 1) % n] for a in random.sample(range(n), k)]
        others = sorted(set(range(n)) - {host for link in ends for host in link})
        bad = frozenset(random.sample(others, broken))
        return Cluster(n, bad=bad, links=frozenset(pair(a, b) for a, b in ends), mesh=mesh, seed=seed)

    return make


def slow(k: int, k_links: int) -> Fault:
    """`k` hosts and `k_links` links of the ring at a third of the others' speed."""

    def make(n: int, random: Random, seed: int) -> Cluster:
        hosts = dict.fromkeys(random.sample(range(n), k), GBPS / 3)
        apart = [(a, a + 1) for a in range(0, n, 2) if not {a, a + 1} & hosts.keys()]
        return Cluster(n, slow=hosts, slow_links=dict.fromkeys(random.sample(apart, k_links), GBPS / 3), seed=seed)

    return make


def gone(k: int) -> Fault:
    return lambda n, random, seed: Cluster(n, absent=frozenset(random.sample(range(n), k)), seed=seed)


FAST = {"strategy": "fast"}
LEAST = {"min_busbw_gbps": 0.75 * GBPS}
SCENARIOS = [
    Scenario("healthy", 64, nodes(0)),
    *(Scenario("1 bad host", hosts, nodes(1)) for hosts in (4, 8, 16, 32, 64)),
    Scenario("2 bad hosts", 16, nodes(2)),
    Scenario("4 bad hosts", 64, nodes(4)),
    Scenario("5 bad hosts", 256, nodes(5)),
    Scenario("10 bad hosts", 1024, nodes(10)),
    Scenario("100 bad hosts", 1024, nodes(100)),
    Scenario("30 bad hosts", 64, nodes(30)),
    Scenario("3 bad hosts, 5 % false alarms", 256, nodes(3, alarms=0.05), links_count=False),
    Scenario("skew, 5 of 16", 16, skew(5)),
    Scenario("skew, 16 of 64", 64, skew(16)),
    Scenario("skew, 512 of 1024", 1024, skew(512)),
    Scenario("a leaf of 16 without uplinks", 128, leaf(16)),
    Scenario("1 bad link of the ring", 64, links(1)),
    Scenario("2 bad links, 2 bad hosts", 64, links(2, 2)),
    Scenario("1 bad link anywhere, mesh", 4, links(1, mesh=True)),
    Scenario("1 bad link anywhere, mesh", 64, links(1, mesh=True)),
    Scenario("2 hosts that show it in 70 %", 64, nodes(2, shows=0.7), links_count=False),
    Scenario("the same, repeat 3", 64, nodes(2, shows=0.7), {"repeat": 3}, links_count=False),
    Scenario("1 bad host, fast", 64, nodes(1), FAST),
    Scenario("4 bad hosts, fast", 64, nodes(4), FAST),
    Scenario("3 absent hosts", 64, gone(3)),
    Scenario("1 slow host", 16, slow(1, 0), LEAST),
    Scenario("1 slow host, 2 slow links", 64, slow(1, 2), LEAST),
]


def play(planner: Planner, cluster: Cluster) -> Iterator[tuple[float, Round]]:
    """Every round with the seconds it took to plan; the last is followed by the end of the planning."""
    steps = planner.rounds()
    asked: Round | None = None
    results = None
    while True:
        began = time.perf_counter()
        try:
            asked = next(steps) if results is None else steps.send(results)
        except StopIteration:
            return
        yield time.perf_counter() - began, asked
        results = cluster.answer(asked)


def said(found: Diagnosis) -> tuple[object, ...]:
    """What the diagnosis names."""
    named = frozenset((link.a, link.b) for link in found.links if link.state == "bad")
    slow_links = frozenset((link.a, link.b) for link in found.links if link.state == "slow")
    partitions = frozenset(frozenset(group) for group in found.partitions)
    return frozenset(found.bad), named, partitions, frozenset(found.slow), slow_links, frozenset(found.absent)


def truth(cluster: Cluster) -> tuple[object, ...]:
    minority = frozenset(cluster.classes)
    partitions = frozenset({minority, frozenset(range(cluster.hosts)) - minority} if minority else set())
    return (
        cluster.bad,
        cluster.links,
        partitions,
        frozenset(cluster.slow),
        frozenset(cluster.slow_links),
        cluster.absent,
    )


def simulate(scenario: Scenario) -> dict[str, Any]:
    """All runs of one scenario, averaged."""
    runs = [simulated(scenario, seed) for seed in range(RUNS_OF_1024 if scenario.hosts == 1024 else RUNS)]
    means = {key: fmean(float(run[key]) for run in runs) for key in runs[0]}
    return {"name": scenario.name, "hosts": scenario.hosts, "runs": len(runs), **means} | {
        "most_rounds": max(run["rounds"] for run in runs),
        "planning_s": [run["planning_s"] for run in runs],
    }


def simulated(scenario: Scenario, seed: int) -> dict[str, float]:
    cluster = scenario.fault(scenario.hosts, Random(seed), seed)  # noqa: S311 - makes faults
    planner = Planner(scenario.hosts, seed=seed, local=False, **scenario.options)
    planning_s, known = 0.0, []
    for took_s, _ in play(planner, cluster):
        planning_s += took_s
        known.append(said(planner.diagnosis()))  # before the round: what the earlier ones told
    began = time.perf_counter()
    found = planner.diagnosis()
    planning_s += time.perf_counter() - began
    known.append(said(found))
    right, named = truth(cluster), {(link.a, link.b) for link in found.links if link.state == "bad"}
    return {
        "rounds": len(cluster.rounds),
        "tests": sum(len(asked.groups) for asked in cluster.rounds),
        "named_after": next(at for at in range(len(known)) if all(each == known[-1] for each in known[at:])),
        "exact": known[-1] == right if scenario.links_count else known[-1][0] == right[0],
        "innocents": len(found.bad.keys() - cluster.bad),
        "missed": len(cluster.bad - found.bad.keys()),
        "bad_hosts_exact": found.bad.keys() == cluster.bad,
        "links": len(cluster.links),
        "links_named": len(named & cluster.links),
        "false_links": len(named - cluster.links),
        "planning_s": planning_s,
    }


if __name__ == "__main__":
    at = sys.argv[1:]
    print(json.dumps(simulate(SCENARIOS[int(at[0])]) if at else len(SCENARIOS)))
