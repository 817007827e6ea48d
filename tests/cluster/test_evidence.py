"""What pairs prove, one fact at a time."""

from itertools import product

from probe.cluster.evidence import Evidence, Reading


def read(passed: str, failed: str, *, hosts: int = 10, repeated: bool = False) -> Reading:
    """The reading of ``01 12`` passed and ``23`` failed, each pair two digits."""
    evidence = Evidence(repeated=repeated)
    for pairs, ok in ((failed, False), (passed, True)):
        for ends in pairs.split():
            evidence.add([int(host) for host in ends], ok=ok)
    return evidence.read(range(hosts))


def test_a_pass_certifies_both_and_a_failure_accuses_neither() -> None:
    reading = read("01", "23", hosts=4)
    assert (frozenset({0, 1}), (2, 3), {}) == (reading.certified, reading.suspects, reading.condemned)


def test_two_certified_partners_condemn_and_one_does_not() -> None:
    assert {2: (0, 1)} == read("01", "20 21", hosts=3).condemned
    assert {} == read("01", "20 23", hosts=4).condemned


def test_once_a_pair_failed_and_passed_it_takes_three() -> None:
    """4-5 came and went, so may have the failures of 2."""
    assert {} == read("01 45", "20 21 45", hosts=6).condemned
    assert {2: (0, 1, 4)} == read("01 45", "20 21 24 45", hosts=6).condemned


def test_a_link_of_two_certified_hosts_needs_two_failures_unless_it_alone_explains_the_world() -> None:
    once, twice = read("01 23", "12", hosts=4), read("01 23", "12 12", hosts=4)
    assert ({}, {(1, 2): 1}) == (once.links(explains=False), once.links(explains=True))
    assert {(1, 2): 2} == twice.links(explains=False)
    assert {} == read("01 23", "12 30", hosts=4).links(explains=True)


def test_four_pairs_make_a_partition_if_they_are_of_two_hosts_a_side() -> None:
    """Else one host with many bad links would be taken for a side."""
    inside = "01 12 23 45 56 67"
    of_many, of_one = "04 15 26 37", "04 05 06 07"
    assert [(0, 1, 2, 3), (4, 5, 6, 7)] == list(read(inside, of_many, hosts=8).groups)
    assert 1 == len(read(inside, of_one, hosts=8).groups)
    assert 1 == len(read(inside, "04 15", hosts=8).groups)


def test_failures_across_a_partition_are_no_bad_links() -> None:
    across = "04 04 15 15 26 26 37 37"
    assert {} == read("01 12 23 45 56 67", across, hosts=8).links(explains=False)


def test_where_there_are_two_groups_a_host_is_condemned_by_both() -> None:
    inside, across = "01 23", " ".join(f"{a}{b}" for a, b in product("01", "23"))
    assert {} == read(inside, f"{across} 40 41", hosts=5).condemned
    assert {4: (0, 1, 2, 3)} == read(inside, f"{across} 40 41 42 43", hosts=5).condemned


def test_a_group_that_passes_certifies_its_ring() -> None:
    evidence = Evidence()
    evidence.add((0, 2, 4), ok=True)
    assert ((0, 2, 4),) == evidence.read(range(5)).components
    assert {2, 4} == evidence.passed[0]


def test_a_large_group_that_fails_says_nothing_about_its_pairs() -> None:
    evidence = Evidence()
    evidence.add((0, 1, 2), ok=False)
    assert not evidence.failures


def test_with_repeat_a_host_that_failed_with_one_that_works_needs_a_second_partner() -> None:
    assert frozenset({0, 3}) == read("01 23", "12", hosts=4, repeated=True).certified
    assert frozenset({0, 1, 3, 4}) == read("01 23 14", "12", hosts=5, repeated=True).certified


def test_with_repeat_a_failure_with_a_host_that_never_worked_casts_no_doubt() -> None:
    assert {2: (0, 1)} == read("01", "02 12", hosts=3, repeated=True).condemned
