"""The planner against simulated clusters: what it names, what it never names, and what it asks for.

Over 300 lines: properties, the weakened planners that break them, then one case each of what a gate can meet.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.cluster.evidence import limit, pair
from probe.cluster.localise import Diagnosis, Kind, Planner, Result, Round, bound, localise
from probe.cluster.pairing import Pairing
from tests.cluster.simulate import Cluster, run

# --------------------------------------------------------------------------------------------------------- properties
# Each is a function of the planner, so that the weakened planners at the end can be shown to break it.


def steps(planner: Planner, cluster: Cluster) -> Iterator[tuple[Round, list[Result]]]:
    """The rounds with their results, one by one; after each the planner knows no more than that."""
    rounds = planner.rounds()
    asked = next(rounds, None)
    while asked is not None:
        results = cluster.answer(asked)
        try:
            following: Round | None = rounds.send(results)
        except StopIteration:
            following = None
        yield asked, results
        asked = following


def planned(cluster: Cluster, kind: type[Planner] = Planner, **options: Any) -> tuple[Planner, Diagnosis]:
    planner = kind(cluster.hosts, seed=cluster.seed, **options)
    return planner, run(planner, cluster)


@st.composite
def anything(draw: st.DrawFn, most: int = 40) -> Cluster:
    """A cluster with any faults at once, some of which come and go."""
    hosts = draw(st.integers(2, most))
    some = st.frozensets(st.integers(0, hosts - 1), max_size=max(1, hosts // 3))
    joined = st.tuples(st.integers(0, hosts - 1), st.integers(0, hosts - 1)).filter(lambda ends: ends[0] != ends[1])
    return Cluster(
        hosts,
        bad=draw(some),
        sick=draw(st.just(frozenset[int]()) | some),
        links=frozenset(pair(*ends) for ends in draw(st.frozensets(joined, max_size=3))),
        classes=dict.fromkeys(draw(st.just(frozenset[int]()) | some), 1),
        absent=draw(st.just(frozenset[int]()) | some),
        liars=draw(st.just(frozenset[int]()) | some),
        shows=draw(st.sampled_from([1.0, 0.7, 0.3])),
        alarms=draw(st.sampled_from([0.0, 0.05, 0.3])),
        untestable=draw(st.sampled_from([0.0, 0.1, 1.0])),
        slow=dict.fromkeys(draw(some), 10.0),
        mesh=draw(st.booleans()),
        seed=draw(st.integers(0, 999)),
    )


options = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["thorough", "fast"]),
        "repeat": st.integers(1, 3),
        "local": st.booleans(),
        "min_busbw_gbps": st.sampled_from([None, 30.0]),
    }
)


def test_the_bound_grows_with_the_logarithm_of_the_hosts() -> None:
    assert (28, 40, 136, 408) == (bound(2), bound(4), bound(1024), bound(1024, repeat=3))


def rounds_are_sound(kind: type[Planner], cluster: Cluster, **options: Any) -> None:
    """As many rounds as promised at most, numbered; no host twice in one, and none from elsewhere."""
    planned(cluster, kind, **options)
    assert len(cluster.rounds) <= bound(cluster.hosts, options.get("repeat", 1))
    assert list(range(1, len(cluster.rounds) + 1)) == [asked.n for asked in cluster.rounds]
    for asked in cluster.rounds:
        hosts = [host for group in asked.groups for host in group]
        assert len(hosts) == len(set(hosts)), asked
        assert set(hosts) <= set(range(cluster.hosts))
        assert asked.groups
        assert all(asked.groups)


@given(anything(), options)
def test_rounds_are_bounded_and_no_host_is_twice_in_one(cluster: Cluster, options: dict[str, Any]) -> None:
    rounds_are_sound(Planner, cluster, **options)


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_hosts_are_no_exception(seed: int) -> None:
    hosts = range(1024)
    random = Random(seed)  # noqa: S311 - makes faults
    some = frozenset(random.sample(hosts, 200))
    cluster = Cluster(1024, bad=some, classes=dict.fromkeys(random.sample(hosts, 400), 1), alarms=0.05, seed=seed)
    rounds_are_sound(Planner, cluster)


def exact(kind: type[Planner], cluster: Cluster, **options: Any) -> None:
    """The bad hosts are named, nothing else is, and all others are confirmed."""
    _, found = planned(cluster, kind, **options)
    assert (set(found.bad), found.links, found.pairs, found.partitions) == (set(cluster.bad), (), (), ())
    assert (found.undetermined, found.absent, found.slow, found.left_out) == ({}, {}, {}, {})
    assert found.confirmed == tuple(host for host in range(cluster.hosts) if host not in cluster.bad)


@st.composite
def broken_hosts(draw: st.DrawFn) -> Cluster:
    """Fewer than half of the hosts: somewhere in the ring two good ones are neighbours."""
    hosts = draw(st.integers(3, 64))
    bad = draw(st.frozensets(st.integers(0, hosts - 1), max_size=(hosts - 1) // 2))
    return Cluster(hosts, bad=bad, seed=draw(st.integers(0, 999)))


@given(broken_hosts(), st.integers(1, 2))
def test_broken_hosts_are_named_exactly(cluster: Cluster, repeat: int) -> None:
    exact(Planner, cluster, repeat=repeat)


@given(broken_hosts())
def test_broken_hosts_are_named_exactly_by_the_fast_strategy_or_left_undetermined(cluster: Cluster) -> None:
    """A random matching may certify nobody; then nobody is blamed."""
    _, found = planned(cluster, strategy="fast")
    assert set(found.bad) <= set(cluster.bad)
    assert set(cluster.bad) <= set(found.bad) | set(found.undetermined)
    assert not found.links
    assert not found.partitions


@given(st.data(), st.integers(3, 48), st.booleans())
def test_one_bad_link_is_named_exactly(data: st.DataObject, hosts: int, mesh: bool) -> None:
    """In a mesh any, in a ring one of the ring's."""
    a = data.draw(st.integers(0, hosts - 1))
    b = data.draw(st.integers(0, hosts - 1).filter(lambda host: host != a)) if mesh else (a + 1) % hosts
    cluster = Cluster(hosts, links=frozenset({pair(a, b)}), mesh=mesh)
    _, found = planned(cluster)
    assert [pair(a, b)] == [(link.a, link.b) for link in found.links]
    assert ({}, {}, (), ()) == (found.bad, found.undetermined, found.pairs, found.partitions)
    assert {max(a, b)} == set(range(hosts)) - set(found.confirmed) == set(found.left_out)


@st.composite
def partitioned(draw: st.DrawFn, classes: int = 2) -> Cluster:
    """Classes of at least two hosts each, in any order."""
    sizes = draw(st.lists(st.integers(2, 20), min_size=classes, max_size=classes))
    order = draw(st.permutations([at for at, size in enumerate(sizes) for _ in range(size)]))
    return Cluster(len(order), classes=dict(enumerate(order)), seed=draw(st.integers(0, 999)))


@given(partitioned())
def test_in_a_partition_nobody_is_blamed_at_any_time(cluster: Cluster) -> None:
    planner = Planner(cluster.hosts, seed=cluster.seed)
    for _ in steps(planner, cluster):
        assert {} == planner.diagnosis().bad


@given(partitioned(2) | partitioned(3))
def test_what_is_called_a_partition_works_inside_and_not_with_the_others(cluster: Cluster) -> None:
    """Of three, too, of which a small one may remain unknown: see `PATIENCE`."""
    _, found = planned(cluster)
    for hosts in found.partitions:
        assert len({cluster.classes[host] for host in hosts}) == 1
    assert not found.links


@pytest.mark.parametrize("seed", range(40))
def test_two_classes_are_named_exactly(seed: int) -> None:
    random = Random(seed)  # noqa: S311 - makes faults
    hosts = random.randint(6, 80)
    other = set(random.sample(range(hosts), random.randint(2, hosts // 2 - 1)))
    _, found = planned(Cluster(hosts, classes=dict.fromkeys(other, 1), seed=seed))
    assert [set(range(hosts)) - other, other] == [set(group) for group in found.partitions]
    assert set(found.confirmed) == set(range(hosts)) - other
    assert dict.fromkeys(sorted(other), "works in another partition") == found.left_out


@pytest.mark.parametrize("seed", range(5))
def test_a_partition_is_found_in_few_rounds(seed: int) -> None:
    """A suspect is sent where it may belong, not again to a group it failed with twice."""
    others = Random(seed).sample(range(64), 16)  # noqa: S311 - makes faults
    cluster = Cluster(64, classes=dict.fromkeys(others, 1), seed=seed)
    planned(cluster, local=False)
    assert len(cluster.rounds) <= 9


def test_whoever_is_condemned_late_is_still_tested_with_the_condemned() -> None:
    """Three classes: hosts 1 and 7 are condemned when the others have had their rounds together."""
    order = "21000201002222"
    _, found = planned(Cluster(len(order), classes={host: int(name) for host, name in enumerate(order)}, seed=37))
    assert ({}, ((0, 5, 10, 11, 12, 13), (2, 3, 4, 6, 8, 9), (1, 7))) == (found.bad, found.partitions)


def nobody_who_passed_is_accused(kind: type[Planner], cluster: Cluster) -> None:
    """A host that passed with a partner works: whatever it fails with later is not its own fault alone."""
    passed: set[int] = set()
    planner = kind(cluster.hosts, seed=cluster.seed, local=False)
    for asked, results in steps(planner, cluster):
        passed |= {host for group, result in zip(asked.groups, results, strict=True) if result.ok for host in group}
        assert not passed & planner.diagnosis().bad.keys()


@given(anything().filter(lambda cluster: not cluster.liars))
def test_a_host_that_passed_is_never_accused(cluster: Cluster) -> None:
    nobody_who_passed_is_accused(Planner, cluster)


@given(anything(), options)
def test_when_the_budget_is_gone_whoever_is_not_decided_is_undetermined(
    cluster: Cluster, options: dict[str, Any]
) -> None:
    """After every round: each host stands in one place, and only who passed something is certified."""
    planner = Planner(cluster.hosts, seed=cluster.seed, **options)
    passed: set[int] = set()
    assert set(range(cluster.hosts)) == planner.diagnosis().undetermined.keys()
    for asked, results in steps(planner, cluster):
        if asked.kind is not Kind.LOCAL:
            passed |= {h for group, result in zip(asked.groups, results, strict=True) if result.ok for h in group}
        found = planner.diagnosis()
        places = [*found.bad, *found.absent, *found.undetermined, *found.certified]
        assert sorted(places) == list(range(cluster.hosts))
        assert found.certified <= passed
        assert found.left_out.keys() <= found.certified
        assert set(found.confirmed) <= found.certified


def innocents_are_safe(kind: type[Planner], cluster: Cluster) -> None:
    """Of broken hosts and bad links that do not meet, only the broken hosts are blamed, at any time."""
    planner = kind(cluster.hosts, seed=cluster.seed)
    for _ in steps(planner, cluster):
        assert planner.diagnosis().bad.keys() <= cluster.bad


@st.composite
def hosts_and_links(draw: st.DrawFn) -> Cluster:
    """No two bad links meet: a host that fails with both its neighbours is guilty by the rule, and rightly left out."""
    hosts = draw(st.integers(6, 40))
    bad = draw(st.frozensets(st.integers(0, hosts - 1), max_size=hosts // 3))
    at = draw(st.frozensets(st.integers(0, hosts // 2 - 1), max_size=2))
    return Cluster(hosts, bad=bad, links=frozenset((2 * a, 2 * a + 1) for a in at), seed=draw(st.integers(0, 999)))


@given(hosts_and_links())
def test_bad_links_and_broken_hosts_accuse_no_innocent(cluster: Cluster) -> None:
    innocents_are_safe(Planner, cluster)


@given(st.data(), st.integers(3, 40))
def test_absent_hosts_harm_nobody_else(data: st.DataObject, hosts: int) -> None:
    absent = data.draw(st.frozensets(st.integers(0, hosts - 1), max_size=hosts - 2))
    _, found = planned(Cluster(hosts, absent=absent))
    assert (set(absent), {}, {}) == (set(found.absent), found.bad, found.undetermined)
    assert set(range(hosts)) - absent == set(found.confirmed)


# ------------------------------------------------------------------------------------------------- weakened planners


class OneStrike(Planner):
    strikes = 1


class SharedPairing(Pairing):
    def _take(self, a: int, b: int) -> None:
        self.pairs.append((a, b))


class Shared(Planner):
    pairing = SharedPairing


def many() -> Iterator[Cluster]:
    """Clusters as above, by the hundred."""
    for seed in range(200):
        random = Random(seed)  # noqa: S311 - makes faults
        hosts = random.randint(6, 40)
        bad = frozenset(random.sample(range(hosts), random.randint(1, hosts // 3)))
        links = frozenset((2 * at, 2 * at + 1) for at in random.sample(range(hosts // 2), 2))
        yield Cluster(hosts, bad=bad, links=links, seed=seed)


def breaks(prop: Callable[[type[Planner], Cluster], None], kind: type[Planner]) -> int:
    """On how many clusters the planner breaks a property."""
    broken = 0
    for cluster in many():
        try:
            prop(kind, cluster)
        except AssertionError:
            broken += 1
    return broken


def test_one_strike_would_blame_innocents() -> None:
    """Two failures are no ornament: with one, a host between a bad link and a broken neighbour is condemned."""
    assert 0 == breaks(innocents_are_safe, Planner)
    assert breaks(innocents_are_safe, OneStrike) > 0


def test_partners_that_are_shared_would_be_twice_in_a_round() -> None:
    assert 0 == breaks(rounds_are_sound, Planner)
    assert breaks(rounds_are_sound, Shared) > 0


# ----------------------------------------------------------------------------------------------------- one by one


def kinds(cluster: Cluster) -> list[str]:
    return [asked.kind.value for asked in cluster.rounds]


def test_a_healthy_world_is_one_test() -> None:
    cluster = Cluster(8)
    _, found = planned(cluster, local=False)
    assert (["world"], tuple(range(8))) == (kinds(cluster), found.confirmed)


def test_the_local_round_tests_every_host_alone_and_names_who_fails_there() -> None:
    cluster = Cluster(4, sick=frozenset({2}))
    _, found = planned(cluster)
    assert ["local", "world"] == kinds(cluster)
    assert ((0,), (1,), (2,), (3,)) == cluster.rounds[0].groups
    assert {2: "failed its local round, with no other host involved"} == found.bad
    assert (0, 1, 3) == found.confirmed


def test_one_broken_host_is_named_by_its_two_neighbours() -> None:
    cluster = Cluster(4, bad=frozenset({1}))
    _, found = planned(cluster, local=False, names=["a", "b", "c", "d"])
    assert ["world", "ring", "ring", "confirm"] == kinds(cluster)
    assert {1: "failed with a and c, both certified"} == found.bad
    assert (0, 2, 3) == found.confirmed


def test_the_link_between_two_certified_hosts_is_named_before_any_further_test() -> None:
    cluster = Cluster(64, links=frozenset({(5, 6)}))
    planner = Planner(64, local=False)
    known = [planner.diagnosis().links for _ in steps(planner, cluster)]
    assert ["world", "ring", "ring", "confirm"] == kinds(cluster)
    assert [False, False, True, True] == [bool(links) for links in known]
    (link,) = known[-1]
    assert (5, 6, "bad") == (link.a, link.b, link.state)
    assert "5-6 failed once, as did the world; both ends work with others" == link.evidence
    assert {6: "an end of a bad link, itself without fault"} == planner.diagnosis().left_out


def test_a_black_hole_across_the_ring_of_four_is_found_without_another_world() -> None:
    """With gloo, which connects all with all, the world fails though the ring works."""
    cluster = Cluster(4, links=frozenset({(0, 2)}), mesh=True)
    _, found = planned(cluster, local=False)
    assert ["world", "ring", "ring", "halves", "confirm"] == kinds(cluster)
    assert {(0, 2), (1, 3)} == set(cluster.rounds[3].groups)
    assert [(0, 2)] == [(link.a, link.b) for link in found.links]
    assert {} == found.bad


def test_two_hosts_alone_are_named_as_a_pair() -> None:
    cluster = Cluster(2, bad=frozenset({1}))
    _, found = planned(cluster, local=False, names=["A", "B"])
    assert ["world", "ring"] == kinds(cluster)
    assert (((0, 1),), {}, (), frozenset()) == (found.pairs, found.bad, found.confirmed, found.certified)
    assert {
        0: "failed with B (not certified): not enough yet to tell whose fault it is",
        1: "failed with A (not certified): not enough yet to tell whose fault it is",
    } == found.undetermined


def test_where_no_two_hosts_work_together_nobody_is_blamed() -> None:
    """A firewall, a wrong interface: nothing tells one host from another."""
    cluster = Cluster(16, classes={host: host for host in range(16)})
    _, found = planned(cluster)
    assert ({}, set(range(16))) == (found.bad, set(found.undetermined))
    assert cluster.rounds[-1].kind is Kind.CONDEMNED
    assert ["local", "world", "ring", "ring", "condemned", "condemned"] == kinds(cluster)


def test_one_host_is_a_world() -> None:
    cluster = Cluster(1)
    _, found = planned(cluster)
    assert (["local", "world"], (0,), {}) == (kinds(cluster), found.confirmed, found.undetermined)


def test_four_hosts_in_two_halves_are_a_partition_once_every_pair_was_tried() -> None:
    cluster = Cluster(4, classes={2: 1, 3: 1})
    _, found = planned(cluster, local=False)
    assert ["world", "ring", "ring", "suspects", "confirm"] == kinds(cluster)
    assert (((0, 1), (2, 3)), {}, ()) == (found.partitions, found.bad, found.links)


def test_hosts_that_took_no_part_are_absent_and_the_world_is_tried_without_them() -> None:
    cluster = Cluster(4, absent=frozenset({3}))
    _, found = planned(cluster, local=False)
    assert ["world", "confirm"] == kinds(cluster)
    assert {3: "took no part in the world of 4"} == found.absent
    assert (0, 1, 2) == found.confirmed


def test_whose_data_is_wrong_is_named_by_its_signature() -> None:
    cluster = Cluster(4, liars=frozenset({1}))
    _, found = planned(cluster, local=False)
    assert {1: "its data was wrong in the world of 4, by its signature"} == found.bad
    assert (0, 2, 3) == found.confirmed


def test_what_could_not_be_tested_proves_nothing() -> None:
    _, found = planned(Cluster(6, untestable=1.0))
    assert ({}, {}, (), ()) == (found.bad, found.absent, found.links, found.pairs)
    assert dict.fromkeys(range(6), "not tested with another host") == found.undetermined


def test_a_world_that_could_not_be_tested_is_tried_again_when_all_pairs_work() -> None:
    planner, seen = Planner(4, local=False), ["world"]
    steps = planner.rounds()
    asked = next(steps)
    with suppress(StopIteration):
        while True:
            asked = steps.send([Result(None if asked.kind is Kind.WORLD else True)] * len(asked.groups))
            seen.append(asked.kind.value)
    assert (["world", "ring", "ring", "confirm"], (0, 1, 2, 3)) == (seen, planner.diagnosis().confirmed)


def test_a_host_that_cannot_be_tested_is_not_asked_for_ever() -> None:
    planner = Planner(16, local=False)
    steps, pairs = planner.rounds(), 0
    asked = next(steps)
    with suppress(StopIteration):
        while True:
            pairs += any(len(group) == 2 and 3 in group for group in asked.groups)
            asked = steps.send([Result(None if 3 in group else asked.kind is not Kind.WORLD) for group in asked.groups])
    assert 3 == pairs
    assert {3: "not tested with another host"} == planner.diagnosis().undetermined


def test_a_world_that_fails_though_all_its_parts_pass_is_given_up_after_two_searches() -> None:
    """It takes all sixteen at once; the second search halves them differently, and nobody is to blame."""
    planner, asked = Planner(16, local=False), []
    steps = planner.rounds()
    question = next(steps)
    with suppress(StopIteration):
        while True:
            asked.append(question)
            question = steps.send([Result(len(group) < 16) for group in question.groups])
    found = planner.diagnosis()
    assert ({}, {}, (), ()) == (found.bad, found.undetermined, found.links, found.confirmed)
    assert ["world", "ring", "ring", "confirm", *["halves"] * 3, "confirm", *["halves"] * 3] == [
        each.kind.value for each in asked
    ]
    assert asked[4].groups != asked[8].groups


@pytest.mark.parametrize("seed", range(10))
def test_a_partner_is_taken_from_another_leaf(seed: int) -> None:
    """A suspect that fails with hosts of its own leaf only may be blamed for the leaf's switch."""
    cluster = Cluster(12, bad=frozenset({4, 5}), seed=seed)
    leaves = [host // 6 for host in range(12)]
    planned(cluster, local=False, leaves=leaves)
    again = [set(group) for asked in cluster.rounds if asked.kind is Kind.SUSPECTS for group in asked.groups]
    (partner,) = next(group for group in again if 4 in group) - {4}
    assert 1 == leaves[partner]


def test_a_host_between_two_bad_links_hears_a_third_opinion_where_a_round_is_made_anyway() -> None:
    """Host 5 fails with both its neighbours. One of three condemned has no partner among them, and is asked again."""
    cleared = 0
    for seed in range(20):
        cluster = Cluster(16, bad=frozenset({10, 13}), links=frozenset({(4, 5), (5, 6)}), seed=seed)
        _, found = planned(cluster)
        assert {10, 13} <= set(found.bad) <= {5, 10, 13}
        cleared += 5 not in found.bad
    assert cleared > 5


def test_the_fast_strategy_takes_four_rounds_for_one_broken_host() -> None:
    cluster = Cluster(16, bad=frozenset({7}))
    _, found = planned(cluster, local=False, strategy="fast")
    assert ["world", "matching", "suspects", "confirm"] == kinds(cluster)
    assert {7} == set(found.bad)


def test_a_failure_that_does_not_come_back_blames_no_link() -> None:
    """The world failed and so did one pair of several doubts; asked again, the pair passes."""
    steps = Planner(8, local=False).rounds()
    asked, results = next(steps), [Result(False)]
    failed: set[tuple[int, ...]] = set()
    found: Diagnosis | None = None
    while found is None:
        try:
            asked = steps.send(results)
        except StopIteration as done:
            found = done.value
            break
        first = {group for group in asked.groups if asked.kind is Kind.RING and group in {(0, 1), (4, 5)}}
        results = [Result(group not in first) for group in asked.groups]
        failed |= first
    assert {(0, 1), (4, 5)} == failed
    assert ((), {}, tuple(range(8))) == (found.links, found.bad, found.confirmed)


def test_with_repeat_a_round_is_asked_again_without_the_groups_that_failed() -> None:
    cluster = Cluster(6, bad=frozenset({0}))
    planned(cluster, local=False, repeat=3)
    assert ["world", "ring", "ring", "ring"] == kinds(cluster)[:4]
    assert [((0, 1), (2, 3), (4, 5)), ((2, 3), (4, 5)), ((2, 3), (4, 5))] == [
        asked.groups for asked in cluster.rounds[1:4]
    ]


def test_with_repeat_a_host_that_failed_needs_two_partners_to_be_certified() -> None:
    """Host 0 passes three times with 1 by luck, and fails with all others: it is not certified by that."""
    planner = Planner(8, local=False, repeat=3)
    steps = planner.rounds()
    asked = next(steps)
    with suppress(StopIteration):
        while True:
            bad = [0 in group and group != (0, 1) for group in asked.groups]
            asked = steps.send([Result(not failing) for failing in bad])
    assert {0} == set(planner.diagnosis().bad)


# ------------------------------------------------------------------------------------------------------------- speed


def test_a_slow_host_is_named_when_its_partners_are_fast_with_others() -> None:
    cluster = Cluster(16, slow={3: 15.0})
    _, found = planned(cluster, local=False, min_busbw_gbps=30.0)
    assert {3} == set(found.slow)
    assert "who are fast with others" in found.slow[3]
    assert tuple(host for host in range(16) if host != 3) == found.confirmed
    assert ({}, ()) == (found.bad, found.links)


def test_a_slow_link_is_named_with_what_was_measured() -> None:
    cluster = Cluster(16, slow_links={(4, 5): 15.0})
    _, found = planned(cluster, local=False, min_busbw_gbps=30.0)
    (link,) = found.links
    assert (4, 5, "slow") == (link.a, link.b, link.state)
    assert link.busbw_gbps is not None
    assert 14 < link.busbw_gbps < 16
    assert ({}, {}) == (found.bad, found.slow)
    assert 5 not in found.confirmed


def test_a_world_that_passed_too_slowly_certifies_nobody() -> None:
    """A host that loses packets may pass with all, a thousand times slower, and fail with each: it is to blame."""
    planner = Planner(4, local=False, min_busbw_gbps=0.03)
    steps = planner.rounds()
    asked = next(steps)
    with suppress(StopIteration):
        while True:
            slow = 0.0002 if asked.kind is Kind.WORLD else 0.5
            asked = steps.send(
                [Result(asked.kind is Kind.WORLD or 2 not in one, busbw_gbps=slow) for one in asked.groups]
            )
    found = planner.diagnosis()
    assert ({2}, (0, 1, 3)) == (set(found.bad), found.confirmed)


def test_without_a_least_bandwidth_the_median_of_the_round_judges() -> None:
    """The world fails for another reason; the slow host comes to light among the others."""
    cluster = Cluster(24, bad=frozenset({10}), slow={3: 15.0})
    _, found = planned(cluster, local=False)
    assert ({10}, {3}) == (set(found.bad), set(found.slow))


def test_a_world_that_is_slow_everywhere_blames_nobody() -> None:
    cluster = Cluster(8, slow=dict.fromkeys(range(8), 15.0))
    _, found = planned(cluster, local=False)
    assert tuple(range(8)) == found.confirmed
    cluster = Cluster(8, slow=dict.fromkeys(range(8), 15.0))
    _, found = planned(cluster, local=False, min_busbw_gbps=30.0)
    assert ((), {}, {}) == (found.confirmed, found.bad, found.slow)
    assert ["world", "ring", "ring"] == kinds(cluster)


def test_a_suspect_of_slowness_is_judged_under_the_load_of_its_own_round() -> None:
    """Alone the two slow hosts reach what the others do in a full network; other pairs must run beside them."""
    cluster = Cluster(32, bad=frozenset({20}), slow={3: 15.0, 4: 15.0}, crowd=4)
    _, found = planned(cluster, local=False)
    assert {3, 4} == set(found.slow)


def test_a_host_that_is_slow_inside_is_named_by_the_local_round() -> None:
    planner = Planner(6)
    steps = planner.rounds()
    next(steps)
    steps.send([Result(True, busbw_gbps=120.0 if host == 2 else 400.0 + host) for host in range(6)])
    assert {2: "120 GB/s inside, where the median of the hosts is 402 GB/s"} == planner.diagnosis().slow


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ([40.0, 10.0, 40.0], None),
        ([40.0, 41.0, 39.0, 10.0], 28.0),
        ([10.0, 40.0, 20.0, 60.0, 30.0, 50.0], 0.0),
    ],
)
def test_slow_is_below_seven_tenths_of_the_median_and_an_outlier(speeds: list[float], expected: float | None) -> None:
    """Three are too few; when they differ as widely as in the last line, none is slow."""
    below = limit(speeds)
    assert expected == (None if below is None else pytest.approx(max(below, 0.0), abs=0.8))


def test_the_generator_returns_the_diagnosis() -> None:
    steps = localise(2, local=False)
    assert Kind.WORLD is next(steps).kind
    with pytest.raises(StopIteration) as done:
        steps.send([Result(True)])
    assert (0, 1) == done.value.value.confirmed
