"""What a bench across hosts makes of what it is told: who is named, what is believed, and what the links could do."""

from typing import Any

import pytest
from msgspec.structs import replace

from probe.cluster.hosts import Host as Named
from probe.cluster.ledger import Ledger, Problem
from probe.cluster.localise import Result as Read
from probe.cluster.model import HostState
from probe.cluster.protocol import Ended, InfinibandPort
from probe.cluster.trial import HostHeard, Trial, hear, read
from probe.config import UsageError
from probe.measure import across, baseline, filing, hosts, limits
from probe.measure.model import Done, Host, Provenance
from probe.model import Record
from tests.cluster.hearing import member, record
from tests.measure import samples

# ---- who is named ----------------------------------------------------------------------------------------------------


def test_hosts_that_are_left_out_for_one_reason_are_named_together_and_busy_ones_with_the_way_out() -> None:
    ledger = Ledger([Named(f"h{number}") for number in range(1, 5)], "ssh")
    for name in ("h1", "h3"):
        ledger.leave_out(name, Problem(HostState.UNREACHABLE, "gate.reach", "refuses the connection"))
    ledger.leave_out("h2", Problem(HostState.BUSY, "gate.node", "1 of its GPUs is in use: busy (a process)"))
    words = across.left_out(ledger)
    assert words == (
        "h[1,3]: refuses the connection; "
        "h2: 1 of its GPUs is in use: busy (a process); --busy test measures all the same"
    )


def test_a_rank_that_ends_at_its_own_limit_accuses_nobody() -> None:
    """It may have waited for any other; faulthandler's words tell such an end from a crash."""
    trial = Trial([member(0), member(1)], 1, processes=1)
    hear(trial, trial.members[0], record("step", "all_reduce 1 KiB", rank=0))
    tail = 'Timeout (0:00:07)!\nThread 0x1 (most recent call first):\n  File "a.py", line 3 in wait\n'
    hear(trial, trial.members[0], Ended(job=1, process="0", status=1, tail=tail))
    found: Read = read(trial)
    assert (False, (), "it was not done in time") == (found.ok, found.absent, found.note)


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        ({"out_of_time": True, "getting_on": True}, Done.DONE),
        ({"out_of_time": True}, Done.FAIL),
        ({"getting_on": True}, Done.FAIL),
        (
            {"out_of_time": True, "getting_on": True, "heard": {0: HostHeard(own="its rank was ended by SIGKILL")}},
            Done.FAIL,
        ),
    ],
    ids=["at work", "silent", "failed in time", "killed"],
)
def test_ranks_that_our_own_clock_ends_at_work_have_failed_at_nothing(ended: dict[str, Any], expected: Done) -> None:
    found = Trial([member(0), member(1)], 1, processes=1, **ended)
    assert across.outcome(found)[0] is expected


# ---- what is believed ------------------------------------------------------------------------------------------------

DATA: dict[str, Any] = {
    "case": "all_reduce 1 KiB",
    "seconds": [0.001, 0.002],
    "amount": 1024.0,
    "unit": "B",
    "verified": True,
    "rank": 0,
    "data": {"op": "all_reduce", "size_bytes": 1024, "ranks": 2, "bus_factor": 1.0},
}


def heard(*of_each: dict[str, Any]) -> Trial:
    """A trial in which each host's rank said one case."""
    trial = Trial([member(at) for at in range(len(of_each))], 1, processes=1)
    for at, data in enumerate(of_each):
        hear(trial, trial.members[at], record("result", **{**data, "rank": at}))
    return trial


def test_a_call_takes_as_long_as_the_slowest_rank_says() -> None:
    said, complaints = hosts.said(heard(DATA, {**DATA, "seconds": [0.004, 0.002]}))
    (one,) = filing.file("collective", said).results
    assert [] == complaints
    assert (2, 2) == (one.n, one.data["ranks"])
    assert one.median == pytest.approx(sum(1024 / 1e9 / seconds for seconds in (0.004, 0.002)) / 2, rel=1e-5)


def test_a_case_that_one_rank_has_not_said_is_no_result() -> None:
    said, _ = hosts.said(heard(DATA))
    assert [] == filing.file("collective", said).results


@pytest.mark.parametrize(
    "wrong",
    [
        {"case": "all_reduce\x1b[2J"},
        {"case": 7},
        {"seconds": []},
        {"seconds": [-1.0]},
        {"seconds": ["1"]},
        {"amount": 0.0},
        {"unit": "FLOP"},
        {"verified": "yes"},
        {"data": {"op": "all_reduce"}},
        {"data": {**DATA["data"], "op": "<script>"}},
        {"data": {**DATA["data"], "bus_factor": 0.0}},
    ],
)
def test_what_a_host_says_that_is_no_result_is_named_and_not_filed(wrong: dict[str, Any]) -> None:
    said, complaints = hosts.said(heard(DATA, {**DATA, **wrong}))
    assert ["h2 said what is no result"] == complaints
    assert [] == filing.file("collective", said).results


def test_nothing_was_said_before_it_began() -> None:
    assert ([], []) == hosts.said(None)


# ---- on what ---------------------------------------------------------------------------------------------------------


def port(rate_gbps: int = 400, layer: str = "InfiniBand") -> InfinibandPort:
    return InfinibandPort(port="mlx5_0:1", state="ACTIVE", rate_gbps=rate_gbps, layer=layer)


def known(*, backend: str = "nccl", launcher: str = "ssh", ranks: int = 1, **facts: Any) -> Provenance:
    """Of two hosts with one active port each, or what `facts` says."""
    ledger = Ledger([Named("h1"), Named("h2")], launcher)
    ledger.backend, ledger.nproc = backend, ranks
    for at in range(2):
        ledger.members[f"h{at + 1}"] = member(at, **{"infiniband": (port(),), **facts})
    return hosts.provenance(ledger, None)


def test_the_links_of_each_host_are_known_by_its_active_ports() -> None:
    assert [(50.0, True)] * 2 == [(host.links_gbps, host.links_add) for host in known().hosts]
    assert [(25.0, False)] * 2 == [
        (host.links_gbps, host.links_add) for host in known(infiniband=(port(200, "Ethernet"),)).hosts
    ]


@pytest.mark.parametrize("name", hosts.SOCKETS)
def test_links_that_nccl_is_told_to_leave_alone_do_not_count(name: str) -> None:
    assert [None, None] == [host.links_gbps for host in known(environment={name: hosts.SOCKETS[name]}).hosts]


def test_the_machine_is_said_in_words() -> None:
    assert known(ranks=8).machine == "2 hosts x 8 x GPU"
    assert known(backend="gloo").machine == "2 hosts x 1 process on Some CPU, 8 cores"


# ---- the limit -------------------------------------------------------------------------------------------------------


def limit(op: str, *, count: int = 2, ranks: int = 8, adds: bool = False, **changed: Any) -> limits.Limit:
    each = tuple(Host(f"h{at}", ranks, links_gbps=400.0, links_add=adds) for at in range(count))
    return limits.across(replace(known(), hosts=each, **changed), op)


@pytest.mark.parametrize(
    ("op", "count", "ranks", "adds", "expected"),
    [
        # one rank on each host: what nccl-tests' busbw is made for, all that crosses is what a rank sends
        ("all_reduce", 4, 1, False, 400.0),
        ("all_gather", 4, 1, False, 400.0),
        ("all_to_all", 4, 1, False, 400.0),
        ("broadcast", 4, 1, False, 400.0),
        # eight on each of two: a half of an all-gather crosses, 15/16 of it count
        ("all_gather", 2, 8, False, 400 * 15 / 16 * 2),
        ("reduce_scatter", 2, 8, False, 400 * 15 / 16 * 2),
        ("all_reduce", 2, 8, False, 400 * 15 / 16 * 2),
        ("broadcast", 2, 8, False, 400.0),
        # of 16 parts of each of its 8 ranks half go to the other host
        ("all_to_all", 2, 8, False, 400 * 15 / 64),
        ("all_reduce", 4, 8, True, 400 * 2 * 31 / 32),
    ],
)
def test_a_limit_is_what_must_cross_the_links_of_one_host(
    op: str, count: int, ranks: int, adds: bool, expected: float
) -> None:
    assert limit(op, count=count, ranks=ranks, adds=adds).value == pytest.approx(expected)


def test_the_slowest_host_s_links_count() -> None:
    slow = (Host("h1", 1, links_gbps=400.0), Host("h2", 1, links_gbps=50.0))
    found = limits.across(replace(known(), hosts=slow), "broadcast")
    assert (50.0, "the links of h2, 50 GB/s") == found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"launcher": "local"}, "simulated"),
        ({"backend": "gloo"}, "gloo goes by TCP"),
        ({"hosts": (Host("h1", 8),)}, "no link between hosts"),
        ({"hosts": (Host("h1", 8, links_gbps=400.0), Host("h2", 8))}, "h2 has no InfiniBand"),
    ],
)
def test_where_the_links_are_not_known_nothing_is_guessed(changed: dict[str, Any], words: str) -> None:
    found = limits.across(replace(known(), **changed), "all_reduce")
    assert found.value is None
    assert words in found.source


# ---- the baseline ----------------------------------------------------------------------------------------------------


def test_a_baseline_is_of_the_same_hosts_in_any_order_or_refused() -> None:
    run = replace(samples.run(0), provenance=known())
    baseline.refuse_other_hosts(run, ["h2", "h1"], "base.json")
    for names in ([], ["h1"], ["h1", "h3"]):
        with pytest.raises(UsageError, match="other hosts: on h1,h2"):
            baseline.refuse_other_hosts(run, names, "base.json")
    with pytest.raises(UsageError, match="on one host alone"):
        baseline.refuse_other_hosts(samples.run(0), ["h1", "h2"], "base.json")


def test_other_counts_and_other_hardware_are_refused_and_what_is_not_known_is_not_held_against_it() -> None:
    run = replace(samples.run(0), provenance=known(ranks=8))
    baseline.refuse_other_hardware(run, known(ranks=8), "base.json")
    for other, words in ((known(ranks=4), "ranks on each host was 8, is 4"), (known(ranks=8, cpu="X"), "CPU was")):
        with pytest.raises(UsageError, match=words):
            baseline.refuse_other_hardware(run, other, "base.json")
    gpus = replace(run.provenance, hosts=tuple(replace(host, gpu="NVIDIA H100") for host in run.provenance.hosts))
    baseline.refuse_other_hardware(replace(run, provenance=gpus), known(ranks=8), "base.json")


def test_what_else_differs_is_named_host_by_host() -> None:
    now = known()
    changed = replace(now, hosts=(now.hosts[0], replace(now.hosts[1], nccl="2.28.3")))
    assert ("h2 nccl:  -> 2.28.3",) == baseline.differences(now, changed)


def test_records_that_are_not_results_are_kept_apart() -> None:
    filed = filing.file("collective", [[Record("left", text="no time", data={"case": "a"}), Record("device")]])
    assert (["a: no time"], 1, []) == (filed.left_out, len(filed.devices), filed.results)
