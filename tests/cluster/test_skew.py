"""What differs between hosts, and which difference tells two groups apart."""

from probe.cluster.skew import Clock, clocks, explains, groups, in_words

VALUES = {
    "h1": {"nccl": "2.28.9", "kernel": "6.1", "torch": "2.13"},
    "h2": {"nccl": "2.28.9", "kernel": "6.1", "torch": "2.13"},
    "h3": {"nccl": "2.27.3", "kernel": "6.1", "torch": "2.13", "NCCL_NET": "IB"},
}


def test_only_what_differs_is_listed_the_larger_group_first() -> None:
    found = {skew.key: [(group.value, group.hosts) for group in skew.groups] for skew in groups(VALUES)}
    assert {
        "nccl": [("2.28.9", ("h1", "h2")), ("2.27.3", ("h3",))],
        "NCCL_NET": [("not set", ("h1", "h2")), ("IB", ("h3",))],
    } == found


def test_what_must_differ_is_not_compared() -> None:
    assert () == groups({host: {"NCCL_HOSTID": host} for host in ("h1", "h2")})


def test_a_version_that_a_host_never_told_is_no_difference() -> None:
    """It was lost before it had imported torch; a variable that it does not have is one."""
    values = {**VALUES, "h4": {"kernel": "6.1"}}
    found = {skew.key: {group.value: group.hosts for group in skew.groups} for skew in groups(values)}
    assert {"2.28.9": ("h1", "h2"), "2.27.3": ("h3",)} == found["nccl"]
    assert {"not set": ("h1", "h2", "h4"), "IB": ("h3",)} == found["NCCL_NET"]
    assert "torch" not in found
    assert ["NCCL_NET"] == [skew.key for skew in explains(groups(values), [["h1", "h2", "h4"], ["h3"]])]


def test_in_words_hosts_are_folded() -> None:
    assert in_words(groups(VALUES)[0]) == "nccl: 2.28.9 on h[1-2]; 2.27.3 on h3"


def test_a_difference_explains_exactly_its_own_groups() -> None:
    skews = groups(VALUES)
    assert ["nccl", "NCCL_NET"] == [skew.key for skew in explains(skews, [["h1", "h2"], ["h3"]])]
    assert [] == explains(skews, [["h1"], ["h2", "h3"]])
    assert [] == explains(skews, [["h1"], ["h2"]])


def test_a_clock_is_off_against_the_median_and_never_by_what_the_round_trip_hides() -> None:
    known = {"a": Clock(0.0, 0.01), "b": Clock(0.1, 0.01), "c": Clock(7.0, 0.01), "d": Clock(1.4, 1.0)}
    assert ["c"] == list(clocks(known))
    assert {} == clocks({})


def test_a_wrong_clock_of_the_controller_accuses_nobody() -> None:
    assert {} == clocks({host: Clock(3600.0, 0.01) for host in "abc"})
