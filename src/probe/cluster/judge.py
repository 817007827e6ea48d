"""What a gate's ledger adds up to: states of hosts, links, causes with remedies, the verdict. Pure.

First match wins::

    somebody ended it, or the budget did, before it was done     undetermined
    every host can work together (or did what was asked)         ready
    a world of some was confirmed                                ready_without
    a fault was found                                            not_ready
                                                                 undetermined

Nobody is blamed by default: a pair that failed names the pair, a link only when both its ends are certified. Over 300
lines because every kind of finding becomes a state, a cause and a part of the verdict in the same few steps.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from probe import __version__, exits, faults
from probe.cluster import skew
from probe.cluster.hosts import fold
from probe.cluster.ledger import Ledger, Problem
from probe.cluster.localise import Diagnosis, Kind
from probe.cluster.model import GateReport, GateVerdict, HostReport, HostState, LinkReport, Skew
from probe.cluster.protocol import InfinibandPort
from probe.model import Cause, Outcome, Profile, Reference, Scalar, Severity, Status, Who
from probe.redact import is_secret
from probe.report.text import folded

SCHEMA = "probe.gate/1"
DIFFERENT = ("host_bad", "host_slow")
"""Where the host itself works, and the others do: then what is not alike is the first place to look."""
REASON_STATES = {"lost": HostState.ABSENT, "agent_lost": HostState.ABSENT}


class Head(NamedTuple):
    """What the process knows of itself."""

    host: str
    column: str
    strict: bool
    budget_s: float
    elapsed_s: float
    started_at: str
    ended: str
    """How it ended before its time: late, interrupted, terminated; else empty."""


class Wants(NamedTuple):
    until: str
    min_hosts: int


class _Found(Struct, frozen=True):
    """One thing that is wrong, about some hosts."""

    problem: Problem
    hosts: tuple[str, ...]
    weight: int = 0
    """What keeps hosts out stands before what does not."""


def report(ledger: Ledger, head: Head, wants: Wants) -> GateReport:
    """The whole answer; at any moment."""
    diagnosis = ledger.planner.diagnosis() if ledger.planner else None
    words = values(ledger)
    skews = skew.groups(words)
    names = [member.name for member in ledger.players]
    partitions = tuple(tuple(names[host] for host in part) for part in diagnosis.partitions) if diagnosis else ()
    known = _problems(ledger, diagnosis, names)
    problems = {host.name: known[host.name] for host in ledger.hosts if host.name in known}  # in the order given
    problems = _explained(problems, [name for name in names if name not in problems], skews)
    states = {host.name: _state(ledger, host.name, problems, diagnosis, names, wants) for host in ledger.hosts}
    clean = _clean(ledger, diagnosis, names, wants, states)
    found = [
        *_found(problems, diagnosis, names),
        *([_Found(*ledger.setting, weight=-1)] if ledger.setting else []),
        *_pace(ledger, clean),
        *_world(ledger, clean, problems, wants),
        *_links(diagnosis, names, skews),
        *_partitions(partitions, skews),
        *_skews(skews, ledger),
    ]
    verdict = _verdict(ledger, head, clean, found, wants)
    causes, remedies = _causes(found)
    hosts = tuple(
        _host(ledger, host.name, states[host.name], problems, remedies, facts(ledger, host.name, words))
        for host in ledger.hosts
    )
    return GateReport(
        schema=SCHEMA,
        probe_version=__version__,
        host=head.host,
        profile=Profile.NODE,
        verdict=verdict,
        exit_code=exit_code(head, verdict, enough=0 < wants.min_hosts <= len(clean)),
        budget_s=head.budget_s,
        elapsed_s=round(head.elapsed_s, 3),
        started_at=head.started_at,
        causes=causes,
        launcher=ledger.launcher,
        phase=ledger.phase,
        hosts=hosts,
        links=_link_reports(diagnosis, names),
        partitions=partitions,
        skew=skews,
        rounds=tuple(ledger.rounds),
        clean_hosts=tuple(clean) if verdict in (GateVerdict.READY, GateVerdict.READY_WITHOUT) else (),
        world=ledger.world,
        notes=_notes(ledger, head, wants, verdict),
    )


def exit_code(head: Head, verdict: GateVerdict, *, enough: bool) -> int:
    if head.ended in ("interrupted", "terminated"):
        return exits.code(head.column, head.ended)
    return exits.gate(head.column, verdict.value, enough=enough, strict=head.strict)


# --- hosts -----------------------------------------------------------------------------------------------------------


BAD = (
    ("its data was wrong", "wrong_data"),
    ("no socket interface found", "nccl_interface"),  # NCCL's bootstrap, where NCCL_SOCKET_IFNAME names none
    ("with no other host involved", "fails_alone"),
)
"""By what is said of a bad host: the catalogue's word for it."""


def _problems(ledger: Ledger, diagnosis: Diagnosis | None, names: Sequence[str]) -> dict[str, Problem]:
    """What keeps each host out: seen before the planner's rounds, by it, or in them on the host itself."""
    problems = dict(ledger.out)
    if diagnosis is None:
        return problems
    for host, words in diagnosis.bad.items():
        data = {"reason": next((reason for said, reason in BAD if said in words), "host_bad")}
        problems.setdefault(names[host], Problem(HostState.BAD, "gate.world", words, data))
    for host, words in diagnosis.absent.items():
        reason, own = ledger.own.get(names[host], ("absent", ""))
        state = REASON_STATES.get(reason, HostState.BAD if own else HostState.ABSENT)
        problems.setdefault(names[host], Problem(state, "gate.world", own or words, {"reason": reason}))
    for host, words in diagnosis.slow.items():
        problems.setdefault(
            names[host], Problem(HostState.SLOW, "gate.world", words, {"reason": "host_slow"}, status=Status.WARN)
        )
    for host, words in diagnosis.undetermined.items():
        data = {"reason": "host_undetermined"}
        problems.setdefault(names[host], Problem(HostState.UNDETERMINED, "gate.world", words, data))
    return problems


def _explained(problems: Mapping[str, Problem], others: Sequence[str], skews: Sequence[Skew]) -> dict[str, Problem]:
    """With what tells a host that cannot work with the others, or is slow, apart from all of them."""
    found = dict(problems)
    for host, problem in problems.items():
        if problem.data.get("reason") in DIFFERENT and len(others) > 1:
            found[host] = replace(problem, summary=problem.summary + _differences(skews, [host], others))
    return found


def _differences(skews: Sequence[Skew], one: Sequence[str], others: Sequence[str]) -> str:
    telling = [known for known in skew.explains(skews, [one, others]) if known.key not in skew.HARMLESS]
    return "".join(f"; they differ in {skew.in_words(known)}" for known in telling)


def _state(
    ledger: Ledger,
    name: str,
    problems: Mapping[str, Problem],
    diagnosis: Diagnosis | None,
    names: Sequence[str],
    wants: Wants,
) -> tuple[HostState, str]:
    """The state and one sentence about it."""
    if name in problems:
        return problems[name].state, problems[name].summary
    if diagnosis is not None and name in names:
        at = names.index(name)
        if at in diagnosis.left_out:
            return HostState.READY, f"works, and left out: {diagnosis.left_out[at]}"
        if at in diagnosis.confirmed or at in diagnosis.certified:
            return HostState.READY, ""
        return HostState.UNDETERMINED, "was in no world that passed"
    if name in ledger.members and wants.until in ("reach", "node") and _done(ledger, wants):
        return HostState.READY, ""
    return HostState.UNDETERMINED, "not tested as far as was asked"


def _done(ledger: Ledger, wants: Wants) -> bool:
    return not ledger.over and ledger.phase.value == wants.until


def _clean(
    ledger: Ledger,
    diagnosis: Diagnosis | None,
    names: Sequence[str],
    wants: Wants,
    states: Mapping[str, tuple[HostState, str]],
) -> list[str]:
    if wants.until in ("reach", "node"):
        return [host.name for host in ledger.hosts if states[host.name][0] is HostState.READY]
    confirmed = {names[host] for host in diagnosis.confirmed} if diagnosis else set()
    return [host.name for host in ledger.hosts if host.name in confirmed - ledger.out.keys()]


def _host(
    ledger: Ledger,
    name: str,
    state: tuple[HostState, str],
    problems: Mapping[str, Problem],
    remedies: Mapping[str, str],
    known: Mapping[str, Scalar],
) -> HostReport:
    warnings = tuple(problem.summary for host, problem in ledger.warnings if host == name)
    evidence = (f"{problems[name].check}: {problems[name].summary}",) if name in problems else ()
    return HostReport(name, state[0], state[1], evidence + warnings, remedies.get(name, ""), known)


def facts(ledger: Ledger, name: str, words: Mapping[str, Mapping[str, str]]) -> dict[str, Scalar]:
    """What is known of one host, flat."""
    member = ledger.members.get(name)
    if member is None or member.facts is None:
        return {}
    known: dict[str, Scalar] = {**words.get(name, {}), "address": member.facts.address, "cores": member.facts.cores}
    if member.clock_offset_s is not None:
        known["clock_offset_s"] = round(member.clock_offset_s, 6)
        known["round_trip_s"] = round(member.round_trip_s, 6)
    if name in ledger.local_gbps:
        known["within_busbw_gbps"] = round(ledger.local_gbps[name], 3)
        node = ledger.nodes.get(name)
        if node is not None and node.nvlink_gbps:
            known["within_links_gbps"] = round(node.nvlink_gbps, 3)
    return known


def values(ledger: Ledger) -> dict[str, dict[str, str]]:
    """By host: what should be alike on all of them, as words."""
    found: dict[str, dict[str, str]] = {}
    for host in ledger.hosts:
        member = ledger.members.get(host.name)
        if member is None or member.facts is None:
            continue
        said, node = member.facts, ledger.nodes.get(host.name)
        words = {"kernel": said.kernel, "python": said.python, "interface": said.interface, "mtu": str(said.mtu)}
        words["infiniband"] = _ports(said.infiniband)
        if said.gpus and not ledger.nodes:  # without the hosts' own checks, which know more
            words["gpus"] = str(said.gpus)
        if member.torch is not None:
            words |= {"torch": member.torch.version or "none", "cuda": member.torch.cuda or "none"}
        if "nccl" in member.importer:
            words["nccl"] = str(member.importer["nccl"])
        words["driver"] = (node.driver if node else "") or said.driver or "none"
        if node is not None:
            words["gpus"] = f"{node.gpus} x {node.gpu_name}" if node.gpus else "none"
        words |= {name: "set" if is_secret(name) else value for name, value in said.environment.items()}
        found[host.name] = words
    return found


def _ports(found: Sequence[InfinibandPort]) -> str:
    if not found:
        return "none"
    active = [port for port in found if port.state == "ACTIVE"]
    rates = ", ".join(str(rate) for rate in sorted({port.rate_gbps for port in active}))
    return f"{len(active)} of {len(found)} ports active{f' at {rates} Gb/s' if active else ''}"


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _found(problems: Mapping[str, Problem], diagnosis: Diagnosis | None, names: Sequence[str]) -> list[_Found]:
    """Each host's, but for those of whom the pair they fail in says all there is to say."""
    paired = {names[host] for pair in diagnosis.pairs for host in pair} if diagnosis else set()
    return [
        _Found(problem, (host,))
        for host, problem in problems.items()
        if host not in paired or problem.state is not HostState.UNDETERMINED
    ]


def _pace(ledger: Ledger, clean: Sequence[str]) -> list[_Found]:
    """A world that worked, and not as fast as it must."""
    world, least_gbps = ledger.world, ledger.least_gbps
    if clean or world is None or world.busbw_gbps is None or least_gbps is None or world.busbw_gbps >= least_gbps:
        return []
    words = f"the world of {world.hosts} hosts works, at {world.busbw_gbps:.3g} GB/s of at least {least_gbps:.3g}"
    problem = Problem(HostState.SLOW, "gate.world", words, {"reason": "world_slow"})
    return [_Found(problem, tuple(host.name for host in ledger.hosts))]


def _world(ledger: Ledger, clean: Sequence[str], problems: Mapping[str, Problem], wants: Wants) -> list[_Found]:
    """A world that failed by nobody's evident fault, where nobody was to look for it."""
    tried = [one for one in ledger.rounds if one.kind == Kind.WORLD]
    if clean or wants.until != "world" or not tried or not tried[-1].results[0].startswith("failed"):
        return []
    (group,), (result,) = tried[-1].groups, tried[-1].results
    if any(problems[name].state is not HostState.UNDETERMINED for name in group if name in problems):
        return []
    problem = Problem(
        HostState.READY, "gate.world", f"the world of {len(group)} hosts {result}", {"reason": "world_failed"}
    )
    return [_Found(problem, group)]


def _links(diagnosis: Diagnosis | None, names: Sequence[str], skews: Sequence[Skew]) -> list[_Found]:
    found = []
    for link in diagnosis.links if diagnosis else ():
        words = f"the link {names[link.a]} - {names[link.b]} is {link.state}: {link.evidence}"
        problem = Problem(HostState.READY, "gate.link", words, {"reason": f"link_{link.state}"})
        found.append(_Found(problem, (names[link.a], names[link.b]), weight=-1 if link.state == "bad" else 1))
    for a, b in diagnosis.pairs if diagnosis else ():
        differ = _differences(skews, [names[a]], [names[b]])
        words = f"{names[a]} - {names[b]} cannot work together, and no third host could say which of them it is{differ}"
        problem = Problem(HostState.UNDETERMINED, "gate.link", words, {"reason": "pair"})
        found.append(_Found(problem, (names[a], names[b]), weight=-1))
    return found


def _link_reports(diagnosis: Diagnosis | None, names: Sequence[str]) -> tuple[LinkReport, ...]:
    if diagnosis is None:
        return ()
    links = [
        LinkReport(names[link.a], names[link.b], link.state, link.evidence, link.busbw_gbps) for link in diagnosis.links
    ]
    pairs = [LinkReport(names[a], names[b], "undetermined", "failed together") for a, b in diagnosis.pairs]
    return tuple(links + pairs)


def _partitions(partitions: Sequence[Sequence[str]], skews: Iterable[Skew]) -> list[_Found]:
    if not partitions:
        return []
    parts = "; ".join(fold(part) for part in partitions)
    why = "".join(f"; they differ in {skew.in_words(one)}" for one in skew.explains(skews, partitions))
    words = f"{len(partitions)} groups work inside and not with each other: {parts}{why}"
    problem = Problem(HostState.READY, "gate.partition", words, {"reason": "partition"})
    return [_Found(problem, tuple(host for part in partitions for host in part), weight=-2)]


def _skews(skews: Iterable[Skew], ledger: Ledger) -> list[_Found]:
    found = [
        _Found(
            Problem(
                HostState.READY,
                "gate.skew",
                f"hosts differ in {skew.in_words(one)}",
                {"reason": "skew"},
                status=Status.WARN,
                names_hosts=True,
            ),
            tuple(host for group in one.groups[1:] for host in group.hosts),
            weight=2,
        )
        for one in skews
        if one.key not in skew.HARMLESS
    ]
    known = {
        name: skew.Clock(member.clock_offset_s, member.round_trip_s)
        for name, member in ledger.members.items()
        if member.clock_offset_s is not None
    }
    for host, offset_s in skew.clocks(known).items():
        words = f"its clock is {abs(offset_s):.1f} s {'ahead' if offset_s > 0 else 'behind'}"
        problem = Problem(HostState.READY, "gate.skew", words, {"reason": "clock"}, status=Status.WARN)
        found.append(_Found(problem, (host,), weight=2))
    for host, problem in ledger.warnings:
        if host not in ledger.out:
            found.append(_Found(problem, (host,), weight=3))
    found += [_left(host, member.left) for host, member in ledger.members.items() if member.left]
    return found


def _left(host: str, left: Sequence[object]) -> _Found:
    words = f"{len(left)} processes were killed and have not gone"
    return _Found(
        Problem(HostState.READY, "gate.end", words, {"reason": "left_behind"}, status=Status.WARN), (host,), weight=1
    )


def _causes(found: Sequence[_Found]) -> tuple[tuple[Cause, ...], dict[str, str]]:
    """One cause for all hosts of which the same is true, and the remedy for each host."""
    groups: dict[tuple[str, str], list[_Found]] = {}
    heads: dict[tuple[str, str], tuple[str, Who, int]] = {}
    remedies: dict[str, str] = {}
    for one in sorted(found, key=lambda one: one.weight):
        code, remedy, who, priority = _fault(one.problem)
        key = (code, _without(one.problem.summary, one.hosts))
        groups.setdefault(key, []).append(one)
        heads.setdefault(key, (remedy, who, priority - 1000 * one.weight))
        if one.weight < 1:
            for host in one.hosts if len(one.hosts) == 1 else ():
                remedies.setdefault(host, remedy)
    ordered = sorted(groups, key=lambda key: -heads[key][2])
    return tuple(_cause(key, groups[key], heads[key]) for key in ordered), remedies


NUMBER = re.compile(r"\d+(\.\d+)?")
ASIDE = re.compile(r" \([^()]*\)")


def _without(summary: str, hosts: Sequence[str]) -> str:
    """The summary without what makes it differ from its like: the one host's name, numbers, words in brackets."""
    if len(hosts) > 1:
        return summary
    name = rf"(?<![\w.-]){re.escape(hosts[0])}(?![\w.-])"  # whole: a host may be called r
    return NUMBER.sub("#", ASIDE.sub("", re.sub(name, "*", summary)))


def _cause(key: tuple[str, str], found: Sequence[_Found], head: tuple[str, Who, int]) -> Cause:
    hosts = list(dict.fromkeys(host for one in found for host in one.hosts))
    first = found[0]
    summary = first.problem.summary
    if len(found) > 1:
        summary = folded([ASIDE.sub("", one.problem.summary) for one in found])
    if all(len(one.hosts) == 1 for one in found) and not first.problem.names_hosts:
        summary = f"{fold(hosts)}: {summary}"
    checks = tuple(Reference(first.problem.check, f"host:{host}") for host in hosts)
    return Cause(key[0], summary, head[0], head[1], checks)


def _fault(problem: Problem) -> tuple[str, str, Who, int]:
    """Code, remedy, who and priority: the host's own report's, else the catalogue's."""
    if problem.code:
        return problem.code, problem.remedy, Who(problem.who), 50
    outcome = Outcome(problem.check, "", problem.status, Severity.CRITICAL, problem.summary, 0.0, 0.0, problem.data)
    fault = faults.recognise(outcome)
    return fault.code, fault.remedy, fault.who, fault.priority


# --- the verdict -----------------------------------------------------------------------------------------------------


def _verdict(ledger: Ledger, head: Head, clean: Sequence[str], found: Sequence[_Found], wants: Wants) -> GateVerdict:
    if head.ended in ("interrupted", "terminated"):
        return GateVerdict.UNDETERMINED
    if wants.until in ("reach", "node"):
        finished = _done(ledger, wants) or not ledger.taking_part
    else:
        finished = bool(clean) or ledger.finished or wants.until == "world" or not ledger.taking_part
    if head.ended or not finished:
        return GateVerdict.UNDETERMINED
    if clean and len(clean) == len(ledger.hosts):
        return GateVerdict.READY
    if clean:
        return GateVerdict.READY_WITHOUT
    seen = any(one.weight < 1 and _is_a_fault(one.problem) for one in found)
    return GateVerdict.NOT_READY if seen and not ledger.over else GateVerdict.UNDETERMINED


def _is_a_fault(problem: Problem) -> bool:
    """Something is wrong, even where nobody can say whose fault it is: a pair that fails is no open question."""
    return problem.state is not HostState.UNDETERMINED or problem.check == "gate.link"


def _notes(ledger: Ledger, head: Head, wants: Wants, verdict: GateVerdict) -> tuple[str, ...]:
    notes = list(ledger.notes)
    if head.ended or ledger.over:
        why = head.ended if head.ended in ("interrupted", "terminated") else "the budget ended"
        notes.append(f"{why} in the phase {ledger.phase.value} after {head.elapsed_s:.1f} s")
    if ledger.world_note and verdict is not GateVerdict.READY:
        notes.append(f"the world failed: {ledger.world_note}")
    if wants.until:
        notes.append(f"only until {wants.until}, as asked")
    return tuple(notes)
