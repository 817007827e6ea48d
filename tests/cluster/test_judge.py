"""What a ledger adds up to: verdict, states, causes and exit codes; and that nobody is blamed by default."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from probe.cluster import judge
from probe.cluster.hosts import Host
from probe.cluster.judge import Head, Wants, report
from probe.cluster.ledger import Ledger, Problem
from probe.cluster.localise import Kind, Planner, Result
from probe.cluster.model import GateReport, HostState, Phase, RoundReport
from probe.report import gate as text
from tests.cluster.hearing import facts, member

HEAD = Head("here", "shell", strict=False, budget_s=120.0, elapsed_s=9.0, started_at="2026-01-01T00:00:00Z", ended="")
Works = Callable[[Sequence[int]], Result]


def ledger(count: int, works: Works | None = None, out: dict[str, Problem] | None = None) -> Ledger:
    """A gate over `count` hosts whose groups end as `works` says; those in `out` never took part."""
    hosts = [Host(f"h{n + 1}") for n in range(count)]
    made = Ledger(hosts, "ssh", phase=Phase.CONFIRM)
    made.members = {host.name: member(n) for n, host in enumerate(hosts)}
    made.out = dict(out or {})
    made.players = made.taking_part
    if works is not None and made.players:
        made.planner = Planner(len(made.players), names=[player.name for player in made.players], seed=1)
        asking = made.planner.rounds()
        try:
            asked = next(asking)
            while True:
                asked = asking.send(
                    [Result(ok=True) if asked.kind is Kind.LOCAL else works(group) for group in asked.groups]
                )
        except StopIteration:
            made.finished = True
    return made


def judged(made: Ledger, until: str = "", min_hosts: int = 0, **head: Any) -> GateReport:
    found = report(made, HEAD._replace(**head), Wants(until, min_hosts))
    Draft202012Validator(text.schema()).validate(json.loads(text.encode(found)))
    assert text.render(found).startswith(found.verdict.value)
    return found


def passes(_group: Sequence[int]) -> Result:
    return Result(ok=True)


def without(*bad: int) -> Works:
    return lambda group: Result(ok=not set(group) & set(bad))


def problem(state: HostState, reason: str) -> Problem:
    return Problem(state, "gate.reach", f"it is {reason}", {"reason": reason})


def test_all_hosts_together_are_ready() -> None:
    found = judged(ledger(4, passes))
    assert ("ready", 0, ()) == (found.verdict, found.exit_code, found.causes)
    assert ("h1", "h2", "h3", "h4") == found.clean_hosts


def test_a_bad_host_is_left_out_and_named() -> None:
    found = judged(ledger(6, without(2)))
    assert ("ready_without", 1) == (found.verdict, found.exit_code)
    assert {"h3": "bad"} == {host.host: host.state for host in found.hosts if host.state != "ready"}
    assert ["HOST_BAD"] == [cause.code for cause in found.causes]
    assert "h3" not in found.clean_hosts


@pytest.mark.parametrize(
    ("min_hosts", "strict", "column", "code"),
    [
        (0, False, "shell", 1),
        (6, False, "shell", 1),
        (5, False, "shell", 0),
        (5, True, "shell", 1),
        (5, False, "nagios", 1),
        (0, False, "nagios", 2),
        (5, True, "docker", 0),
        (0, False, "slurm", 1),
    ],
)
def test_ready_without_some_is_enough_only_where_a_number_was_given(
    min_hosts: int, strict: bool, column: str, code: int
) -> None:
    assert code == judged(ledger(6, without(2)), min_hosts=min_hosts, strict=strict, column=column).exit_code


def test_two_hosts_that_fail_together_blame_neither() -> None:
    found = judged(ledger(2, lambda group: Result(ok=len(group) == 1)))
    assert ("not_ready", 1) == (found.verdict, found.exit_code)
    assert ["undetermined", "undetermined"] == [host.state for host in found.hosts]
    assert "PAIR_FAILS" == found.causes[0].code
    assert [("h1", "h2", "undetermined")] == [(link.a, link.b, link.state) for link in found.links]


def test_a_port_that_cannot_be_had_is_the_cause_and_nobody_s_fault() -> None:
    made = ledger(2)
    made.planner = Planner(2, names=["h1", "h2"], seed=1)
    words = "port 29500 cannot be had on h[1-2] (Address already in use)"
    made.setting = Problem(HostState.UNDETERMINED, "gate.world", words, {"reason": "port_taken"}), ("h1", "h2")
    for until in ("", "world"):
        found = judged(made, until)
        assert ("undetermined", 3, ()) == (found.verdict, found.exit_code, found.links)
        assert ("PORT_TAKEN", "user", words) == (found.causes[0].code, found.causes[0].who, found.causes[0].summary)


def test_a_partition_is_explained_by_what_tells_its_groups_apart() -> None:
    made = ledger(6, lambda group: Result(ok=len({host < 3 for host in group}) == 1))
    for n, one in enumerate(made.players):
        one.importer = {"nccl": "2.28.9" if n < 3 else "2.27.3"}
    found = judged(made)
    assert (("h1", "h2", "h3"), ("h4", "h5", "h6")) == found.partitions
    assert "PARTITION" == found.causes[0].code
    assert "nccl: 2.28.9 on h[1-3]; 2.27.3 on h[4-6]" in found.causes[0].summary
    assert {"ready"} == {host.state for host in found.hosts}


def test_what_tells_a_bad_host_apart_from_all_others_stands_beside_it() -> None:
    """And what two hosts differ in that fail together; a difference that others share explains nothing."""
    made = ledger(6, without(2))
    for n, one in enumerate(made.players):
        one.importer = {"nccl": "2.27.3" if n == 2 else "2.28.9"}
        one.facts = facts(mtu=9000 if n in (1, 2) else 1500, kernel=f"6.{n}")
    bad = next(host for host in judged(made).hosts if host.host == "h3")
    assert bad.reason.endswith("both certified; they differ in nccl: 2.28.9 on h[1-2,4-6]; 2.27.3 on h3")
    made = ledger(2, lambda group: Result(ok=len(group) == 1))
    for n, one in enumerate(made.players):
        one.facts = facts(environment={"NCCL_NET": "IB"} if n else {})
    assert judged(made).causes[0].summary.endswith("they differ in NCCL_NET: not set on h1; IB on h2")


def test_without_their_own_checks_hosts_still_differ_in_driver_and_gpus() -> None:
    made = ledger(3, passes)
    for n, one in enumerate(made.players):
        one.facts = facts(gpus=8, driver="570.86.15" if n else "550.54.14")
    found = judged(made)
    assert ["hosts differ in driver: 570.86.15 on h[2-3]; 550.54.14 on h1"] == [one.summary for one in found.causes]
    assert "8" == found.hosts[0].facts["gpus"]


def test_hosts_that_differ_only_in_numbers_and_addresses_share_a_cause() -> None:
    out = {
        f"h{n}": Problem(HostState.UNREACHABLE, "gate.reach", f"late by {n} s (10.0.0.{n})", {"reason": "refused"})
        for n in (2, 3)
    }
    (cause,) = judged(ledger(4, passes, out)).causes
    assert "h[2-3]: late by 2 to 3 s" == cause.summary


@pytest.mark.parametrize("name", ["r", "ref", "h1"])
def test_a_host_is_named_whatever_its_name_and_what_is_said_of_it(name: str) -> None:
    """Even where the sentence begins like the name."""
    hosts = [Host(name), Host("s")]
    refused = Problem(HostState.UNREACHABLE, "gate.reach", "refuses the connection (port 1)", {"reason": "refused"})
    one = Ledger(hosts, "ssh", out={name: refused})
    assert [f"{name}: refuses the connection (port 1)"] == [cause.summary for cause in judged(one).causes]
    both = Ledger(hosts, "ssh", out={host.name: refused for host in hosts})
    (cause,) = judged(both).causes
    assert cause.summary.endswith(": refuses the connection")
    assert [f"host:{host.name}" for host in hosts] == [reference.target for reference in cause.checks]


def test_clocks_that_are_off_are_named_by_host() -> None:
    made = ledger(4, passes)
    for n, one in enumerate(made.players):
        one.clock_offset_s, one.round_trip_s = (30.0 if n == 1 else 0.0), 0.001
    assert ["h2: its clock is 30.0 s ahead"] == [cause.summary for cause in judged(made).causes]


def test_hosts_of_which_the_same_is_true_share_a_cause() -> None:
    out = {name: problem(HostState.UNREACHABLE, "refused") for name in ("h2", "h3")}
    found = judged(ledger(4, passes, out))
    (cause,) = found.causes
    assert ("SSH_REFUSED", "h[2-3]: it is refused") == (cause.code, cause.summary)
    assert ("h1", "h4") == found.clean_hosts


@pytest.mark.parametrize(
    ("ended", "verdict", "code"),
    [("late", "undetermined", 3), ("interrupted", "undetermined", 130), ("terminated", "undetermined", 143)],
)
def test_what_ends_before_its_time_is_undetermined(ended: str, verdict: str, code: int) -> None:
    found = judged(ledger(4, passes), ended=ended)
    assert (verdict, code, ()) == (found.verdict, found.exit_code, found.clean_hosts)


def test_a_budget_that_is_over_is_undetermined_whatever_was_found() -> None:
    made = ledger(4, None, {"h1": problem(HostState.UNREACHABLE, "refused")})
    made.over = True
    assert "undetermined" == judged(made).verdict


def test_nothing_known_is_undetermined_and_nobody_is_ready() -> None:
    found = judged(Ledger([Host("h1"), Host("h2")], "ssh"), ended="late")
    assert ("undetermined", {"undetermined"}) == (found.verdict, {host.state for host in found.hosts})


@pytest.mark.parametrize("until", ["reach", "node"])
def test_a_phase_that_was_asked_for_is_all_that_counts(until: str) -> None:
    made = ledger(3, None, {"h2": problem(HostState.UNREACHABLE, "auth")})
    made.phase = Phase(until)
    found = judged(made, until)
    assert ("ready_without", ("h1", "h3")) == (found.verdict, found.clean_hosts)
    made.out = {}
    assert "ready" == judged(made, until).verdict


def test_a_world_that_failed_is_not_ready_though_nobody_was_to_say_why() -> None:
    """With --until world: known to fail, and no host is blamed."""
    made = ledger(3)
    made.planner, made.phase = Planner(3, names=["h1", "h2", "h3"]), Phase.WORLD
    made.rounds.append(RoundReport(1, "world", (("h1", "h2", "h3"),), ("failed: no progress in init",), 6.0))
    found = judged(made, until="world")
    assert ("not_ready", 1) == (found.verdict, found.exit_code)
    assert "the world of 3 hosts failed: no progress in init" == found.causes[0].summary
    assert {"undetermined"} == {host.state for host in found.hosts}


def test_no_host_that_can_be_reached_is_not_ready() -> None:
    out = {f"h{n}": problem(HostState.UNREACHABLE, "refused") for n in (1, 2)}
    assert "not_ready" == judged(ledger(2, None, out)).verdict


def test_hosts_that_were_only_late_are_undetermined() -> None:
    out = {f"h{n}": Problem(HostState.UNDETERMINED, "gate.node", "late", {"reason": "node_late"}) for n in (1, 2)}
    assert "undetermined" == judged(ledger(2, None, out)).verdict


def test_a_host_with_a_remedy_shows_it() -> None:
    found = judged(ledger(3, passes, {"h2": problem(HostState.UNREACHABLE, "auth")}))
    (host,) = [host for host in found.hosts if host.host == "h2"]
    assert "authorized_keys" in host.remedy


def test_secrets_in_the_environment_of_hosts_are_not_told() -> None:
    made = ledger(2, passes)
    made.members["h1"] = member(0, environment={"NCCL_SECRET_TOKEN": "hunter2", "NCCL_DEBUG": "WARN"})
    encoded = text.encode(judged(made)).decode()
    assert "hunter2" not in encoded
    assert "NCCL_DEBUG" in encoded
    assert judge.SCHEMA == text.REPORT


def test_what_hosts_say_cannot_act_on_a_terminal() -> None:
    made = ledger(2, passes, {"h2": Problem(HostState.BAD, "gate.node", "bad \x1b[2J\x07 news", {"reason": "node"})})
    assert "\x1b" not in text.render(judged(made))
