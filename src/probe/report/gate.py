"""The gate's report: `GateReport` -> text for people, one line of JSON for programs, and the published schema.

::

    ready_without: 3 of 4 hosts can work together, not gpu03: its rank was killed. <remedy> [who]
    RANK_KILLED [host_admin] gpu03: ...
      remedy: ...
    ready         gpu[01-02,04]
    bad           gpu03   ...
    link          gpu01 - gpu02  bad  ...
    world         3 hosts x 1 rank, gloo: 18 all-reduces exact up to 4 MiB; busbw 0.31 GB/s at 4 MiB
    differ        torch: 2.13.0 on gpu[01-03]; 2.12.1 on gpu04
    clean         gpu[01-02,04]
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from probe.cluster.hosts import fold
from probe.cluster.model import GateReport, GateVerdict, HostReport, HostState
from probe.report.json import line, schema_of
from probe.report.text import LIMIT_REMEDY, RED, cut, first_sentence, speaker

REPORT = "probe.gate/1"
LIMIT_FIRST_LINE = 240
"""More than a check's, whose reader is Docker: here a person reads, and hosts have names."""
LIMIT_LINE = 400
MOST_CAUSES = 12
MOST_ROUNDS = 40
GREEN, YELLOW, MAGENTA = 32, 33, 35
PAINT = {
    "ready": GREEN,
    "ready_without": YELLOW,
    "undetermined": MAGENTA,
    **dict.fromkeys(("not_ready", "fail", "bad", "unreachable", "absent", "skewed", "link"), RED),
    **dict.fromkeys(("slow", "busy"), YELLOW),
}


def encode(report: GateReport) -> bytes:
    """One line, ended by a newline."""
    return line(msgspec.to_builtins(report))


def schema() -> dict[str, Any]:
    """The JSON Schema of `encode`'s output."""
    return schema_of(GateReport, REPORT, "What `probe gate --format json` prints.")


def render(report: GateReport, *, colour: bool = False) -> str:
    """The whole text, ended by a newline."""
    say = speaker([])

    def paint(word: str, text: str) -> str:
        return f"\x1b[{PAINT[word]}m{text}\x1b[0m" if colour and word in PAINT else text

    lines = [paint(report.verdict.value, say(headline(report)))]
    lines += [say(f"note: {note}") for note in report.notes]
    for cause in report.causes[:MOST_CAUSES]:
        lines.append(
            f"{paint('fail', say(cut(cause.code, 60)))} [{cause.who.value}] {say(cut(cause.summary, LIMIT_LINE))}"
        )
        lines.append(f"  remedy: {say(cause.remedy)}")
    if len(report.causes) > MOST_CAUSES:
        lines.append(f"... {len(report.causes) - MOST_CAUSES} more causes; --format json has all")
    lines += [paint(word, f"{word:<13} ") + say(text) for word, text in _rows(report)]
    return "".join(f"{one}\n" for one in lines)


def headline(report: GateReport) -> str:
    """The verdict, who is not in, the cause and the remedy."""
    start = f"{report.verdict.value}: "
    total, clean = len(report.hosts), len(report.clean_hosts)
    if report.verdict is GateVerdict.READY:
        return start + f"{_hosts(total)} {_did(report)} in {report.elapsed_s:.1f} s{_beside(report)}"
    if report.verdict is GateVerdict.READY_WITHOUT:
        out = [host.host for host in report.hosts if host.host not in report.clean_hosts]
        start += f"{clean} of {_hosts(total)} {_did(report)}, not {cut(fold(out), 60)}; "
    if not report.causes:
        return start + (report.notes[0] if report.notes else "nothing could be told")
    cause = report.causes[0]
    more = f" +{len(report.causes) - 1} more" if len(report.causes) > 1 else ""
    end = f" {cut(first_sentence(cause.remedy), LIMIT_REMEDY)} [{cause.who.value}]{more}"
    what = cut(cause.summary.rstrip(". "), LIMIT_FIRST_LINE - len(start + end) - 1)
    return start + what.rstrip(".") + ("..." if what.endswith("...") else ".") + end


def _hosts(count: int) -> str:
    return f"{count} host{'s' * (count != 1)}"


def _did(report: GateReport) -> str:
    if report.world is None:
        return "answered"
    return "can work together" if report.world.hosts > 1 else "can work"


def _beside(report: GateReport) -> str:
    return f"; {len(report.causes)} warning{'s' * (len(report.causes) != 1)} below" if report.causes else ""


def _rows(report: GateReport) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for state in HostState:
        rows += [(state.value, cut(text, LIMIT_LINE)) for text in _of_state(state, report.hosts)]
    rows += [("link", cut(f"{one.a} - {one.b}  {one.state}  {one.evidence}", LIMIT_LINE)) for one in report.links]
    rows += [("group", f"{fold(part)} work with each other") for part in report.partitions]
    if report.world is not None:
        rows.append(("world", _world(report)))
    for skew in report.skew:
        groups = "; ".join(f"{group.value} on {fold(group.hosts)}" for group in skew.groups)
        rows.append(("differ", cut(f"{skew.key}: {groups}", LIMIT_LINE)))
    if len(report.rounds) > 2:  # more than the local round and a world that passed
        rows += [("round", _round(one)) for one in report.rounds[:MOST_ROUNDS]]
    if report.clean_hosts and report.verdict is GateVerdict.READY_WITHOUT:
        rows.append(("clean", fold(report.clean_hosts)))
    return rows


def _of_state(state: HostState, hosts: Sequence[HostReport]) -> list[str]:
    """A line for all hosts of a state of which the same is said."""
    groups: dict[str, list[str]] = {}
    for host in hosts:
        if host.state is state:
            groups.setdefault(host.reason, []).append(host.host)
    return [f"{fold(names)}{f'  {reason}' if reason else ''}" for reason, names in groups.items()]


def _world(report: GateReport) -> str:
    world = report.world
    assert world is not None
    each = world.ranks // max(1, world.hosts)
    text = f"{_hosts(world.hosts)} x {each} rank{'s' * (each != 1)}, {world.backend}: "
    text += f"{world.verified} all-reduces of each rank exact, up to {_size(world.largest_bytes)}"
    if world.busbw_gbps:
        text += f"; busbw {world.busbw_gbps:.3g} GB/s at {_size(world.at_bytes)}"
    return text + _within(report)


def _within(report: GateReport) -> str:
    """The rates within hosts, and what their NVLinks carry where all of them say so."""
    rates, links = (
        [float(host.facts[key] or 0) for host in report.hosts if key in host.facts]
        for key in ("within_busbw_gbps", "within_links_gbps")
    )
    if not rates:
        return ""
    carried = f" of {min(links):.3g} that NVLink carries" if len(links) == len(rates) else ""
    return f"; within hosts {min(rates):.3g} to {max(rates):.3g} GB/s{carried}"


def _size(size_bytes: int) -> str:
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size_bytes >= 1 << power:
            return f"{size_bytes / (1 << power):.3g} {unit}"
    return f"{size_bytes} B"


def _round(one: Any) -> str:
    results = [f"{'-'.join(group)} {result}" for group, result in zip(one.groups, one.results, strict=True)]
    return cut(f"{one.n} {one.kind}, {one.elapsed_s:.1f} s: {'; '.join(results)}", LIMIT_LINE)
