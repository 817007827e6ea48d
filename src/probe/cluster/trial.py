"""What was heard of one group's test, and what that proves. Pure.

::

    records, ends and losses --hear--> Trial --read--> localise.Result, and what speaks against one host alone

A rank that was killed, was stopped, or failed before it had to do with any other host speaks against its own host;
whatever else fails is left to the planner. Of several failures under one torchrun only the first counts. Over 300 lines
because hearing a record and reading what it proves share one small vocabulary.
"""

import re
import signal
from collections.abc import Mapping, Sequence
from statistics import median

from msgspec import Struct, field

from probe.cluster.localise import Result
from probe.cluster.member import Member
from probe.cluster.protocol import AnyMessage, Ended, Heard, State
from probe.model import Record
from probe.worker.ending import LIMIT, name_of

IMPORT = "import torch"
ALONE = (IMPORT, "device", "cuda context", "torchrun")
"""Steps of a rank, and of torchrun, that have to do with its own host only."""
SHARED = ("Rendezvous", "DistNetworkError", "DistStoreError", "TimeoutError", "local rank", "SignalException")
"""What torchrun says when a world did not form or a rank of it failed: no word about this very host."""
OWN_LIMIT = LIMIT.decode()
"""A rank that ended itself at its limit may have waited for any other."""
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGKILL}
"""A rank that ends so was ended on its own host. Not SIGABRT: NCCL's watchdog aborts ranks whose peer is gone."""
SIGNALLED = re.compile(r"local rank .* -(\d{1,2})")
NCCL_ERROR = re.compile(r"\b(?P<kind>nccl[A-Z]\w+):.*Last error:\s*(?P<last>\S.*)", re.DOTALL)


class Wrong(Struct, frozen=True):
    """One all-reduce that came out wrong for one rank."""

    kind: str
    words: int
    owners: tuple[int, ...]
    """Of the wrong words of routed data: the ranks that had sent them."""


class RankHeard(Struct):
    """What one rank has said."""

    step: str = ""
    verified: int = 0
    largest_bytes: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    gathered: tuple[int, ...] = ()
    rates: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By size in bytes: algbw and busbw in GB/s."""
    measured: list[Record] = field(default_factory=list)
    """What the bench's program said of its cases and its device."""
    failed: str = ""
    done: bool = False


class HostHeard(Struct):
    """What came from one host of a group."""

    ranks: dict[int, RankHeard] = field(default_factory=dict)
    spoke: bool = False
    own: str = ""
    """What speaks against this host alone, in words, and `reason` the catalogue's word for it."""
    reason: str = ""
    said: str = ""
    """What torchrun or a rank said last of a failure that may be anybody's."""
    ended: int = 0


class Trial(Struct):
    """One group's test, as it was heard."""

    members: Sequence[Member]
    nproc: int
    processes: int
    """On each host: one torchrun, or one for each rank."""
    heard: dict[int, HostHeard] = field(default_factory=dict)
    ranks_done: int = 0
    over: set[int] = field(default_factory=set)
    """Hosts, by index, of which nothing more will come."""
    first_failure: int | None = None
    """The host whose failure was heard first, by index."""
    stalled: bool = False
    out_of_time: bool = False
    """It ended at our own limit: who was ended by it, and who then missed the others, failed at nothing."""
    getting_on: bool = False
    """Some rank had said something shortly before the end."""
    unreached: list[str] = field(default_factory=list)
    """Who could not reach which rendezvous, in words."""
    no_rendezvous: list[str] = field(default_factory=list)
    """Hosts that most others could not reach as the rendezvous."""
    refused: dict[str, str] = field(default_factory=dict)
    """Where none that was tried as the rendezvous could have the port: their names, and what the system said."""
    rendezvous: str = ""
    """The host that was it."""

    @property
    def done(self) -> bool:
        return self.ranks_done == self.nproc * len(self.members)

    @property
    def failed(self) -> bool:
        return self.first_failure is not None

    @property
    def importing(self) -> bool:
        """Some rank imports torch: alone, on a disk and a CPU that others may be busy with."""
        return any(rank.step == IMPORT for host in self.heard.values() for rank in host.ranks.values())


def hear(trial: Trial, member: Member, message: AnyMessage | None) -> bool:
    """Note one event; whether it is progress."""
    host = trial.heard.setdefault(member.index, HostHeard())
    match message:
        case None:
            trial.over.add(member.index)
            _against(trial, member, "agent_lost", f"its agent was lost: {member.lost}")
        case Heard():
            host.spoke = True
            _record(trial, member, host, message.record)
        case State(state="T" | "t"):
            _against(trial, member, "rank_stopped", f"its rank (pid {message.pid}) was stopped, state {message.state}")
            return False
        case State():
            return False
        case Ended():
            host.ended += 1
            if host.ended >= trial.processes:
                trial.over.add(member.index)
            _ended(trial, member, host, message)
        case _:
            return False
    return True


def _record(trial: Trial, member: Member, host: HostHeard, record: Record) -> None:
    if record.key == "torchrun":
        _torchrun_ended(trial, member, host, record)
    elif record.key == "error":
        _against(trial, member, "rank_failed", record.text.strip().rpartition("\n")[2])
    elif "rank" in record.data:
        rank = host.ranks.setdefault(int(record.data["rank"]), RankHeard())
        trial.ranks_done += record.key == "done" and not rank.done
        if record.key == "failed":
            _rank_failed(trial, member, rank, record)
        else:
            _of_rank(rank, record)


def _of_rank(rank: RankHeard, record: Record) -> None:
    """Take in what it said; `protocol.decode` has seen that what is needed is there."""
    data = record.data
    match record.key:
        case "step":
            rank.step = record.text
        case "cases":
            rank.verified += int(data["verified"])
            rank.largest_bytes = max(rank.largest_bytes, int(data["bytes"]))
            rank.wrong += [Wrong(one["kind"], int(one["words"]), tuple(one["owners"])) for one in data["wrong"]]
        case "gathered":
            rank.gathered = tuple(data["wrong"])
        case "rate":
            rank.rates[int(data["bytes"])] = (float(data["algbw_gbps"]), float(data["busbw_gbps"]))
        case "result" | "left" | "device":
            rank.measured.append(record)
        case "done":
            rank.done = True
        case _:
            pass


def _rank_failed(trial: Trial, member: Member, rank: RankHeard, record: Record) -> None:
    rank.failed = brief(record.text)
    host = trial.heard[member.index]
    if rank.step in ALONE:
        _against(trial, member, "rank_failed", f"its rank failed in {rank.step}: {rank.failed}")
    else:
        host.said = host.said or f"in {rank.step}: {rank.failed}"
        _fails(trial, member)


def brief(text: str) -> str:
    """What torch says of an error of NCCL, without the source file, the advice and the version around it."""
    found = NCCL_ERROR.search(text)
    return f"{found['kind']}: {found['last'].strip()}" if found else text


def _torchrun_ended(trial: Trial, member: Member, host: HostHeard, record: Record) -> None:
    if not record.code:
        return
    if not record.text.startswith(SHARED):
        _against(trial, member, "rank_failed", f"torchrun failed: {record.text}")
        return
    _crashed_under_torchrun(trial, member, record.text)
    host.said = host.said or record.text
    _fails(trial, member)


def _crashed_under_torchrun(trial: Trial, member: Member, text: str) -> None:
    """The end of a worker is told by its exit code: a negative one is a signal."""
    found = SIGNALLED.fullmatch(text)
    if found and int(found[1]) in CRASHES:
        _against(trial, member, *_crash(int(found[1])))


def _crash(number: int) -> tuple[str, str]:
    reason = "rank_killed" if number == signal.SIGKILL else "rank_crashed"
    return reason, f"its rank was ended by {name_of(number)}"


def _ended(trial: Trial, member: Member, host: HostHeard, message: Ended) -> None:
    if message.text:
        _against(trial, member, "rank_failed", message.text)
    elif message.signal is not None and not message.killed:
        if message.signal in CRASHES:
            _against(trial, member, *_crash(message.signal))
        else:
            host.said = host.said or f"its rank was ended by {name_of(message.signal)}"
            _fails(trial, member)
    elif message.tail.startswith(OWN_LIMIT):
        host.said = host.said or "it was not done in time"
        _fails(trial, member)
    elif message.status and message.process != "torchrun" and not any(rank.failed for rank in host.ranks.values()):
        _against(trial, member, "rank_failed", f"its rank ended with status {message.status}{_last(message.tail)}")


def _last(tail: str) -> str:
    lines = tail.strip().splitlines()
    return f": {lines[-1][:200]}" if lines else ""


def _fails(trial: Trial, member: Member) -> None:
    if trial.first_failure is None:
        trial.first_failure = member.index


def _against(trial: Trial, member: Member, reason: str, words: str) -> None:
    host = trial.heard.setdefault(member.index, HostHeard())
    if not host.own:
        host.own, host.reason = words, reason
    _fails(trial, member)


def read(trial: Trial) -> Result:
    """What the group's test says to the planner."""
    for member in trial.members:
        host = trial.heard.setdefault(member.index, HostHeard())
        if trial.stalled and not host.spoke and not host.own:
            host.own, host.reason = "its ranks never started", "rank_failed"
    absent = [member.index for member in trial.members if trial.heard[member.index].own]
    wrong = () if absent else whose_data(trial)
    heard = trial.heard.values()
    bad_words = any(rank.wrong or rank.gathered for host in heard for rank in host.ranks.values())
    return Result(
        ok=trial.done and not bad_words and not absent,
        absent=tuple(absent),
        wrong=wrong,
        busbw_gbps=busbw_gbps(trial),
        note=_note(trial),
    )


def _note(trial: Trial) -> str:
    if trial.unreached:
        return "; ".join(trial.unreached)
    owns = [host.own for host in trial.heard.values() if host.own]
    if owns:
        return owns[0]
    first = trial.heard[trial.first_failure] if trial.first_failure is not None else None
    if first is not None and first.said:
        return first.said[:300]
    if trial.stalled:
        steps = sorted({rank.step for host in trial.heard.values() for rank in host.ranks.values() if not rank.done})
        return f"no progress in {', '.join(steps) or 'starting'}"[:300]
    wrong = sum(one.words for host in trial.heard.values() for rank in host.ranks.values() for one in rank.wrong)
    return f"{wrong} wrong words" if wrong else ""


def whose_data(trial: Trial) -> tuple[int, ...]:
    """The hosts whose bytes were wrong, where the records say so without doubt; else none, and the planner finds out.

    A slot of the all-gather that all others saw wrong is its sender's; a rank that alone saw others' wrong received
    them wrong. Of an all-reduce: wrong in one rank's result only is that rank's; wrong for all, in words of one owner
    only, is that owner's.
    """
    ranks = {number: (index, rank) for index, host in trial.heard.items() for number, rank in host.ranks.items()}
    if len(ranks) < 3:
        return ()  # of two, either may be the one
    for seen in (_of_the_gather, _of_the_sums):
        numbers = seen({number: rank for number, (_, rank) in ranks.items()})
        if numbers:
            return tuple(sorted({ranks[number][0] for number in numbers if number in ranks}))
    return ()


def _of_the_gather(ranks: Mapping[int, RankHeard]) -> set[int]:
    saw = {number: set(rank.gathered) - {number} for number, rank in ranks.items()}
    if not any(saw.values()):
        return set()
    senders = {slot for slot in ranks if all(slot in saw[other] for other in ranks if other != slot)}
    receivers = {number for number, slots in saw.items() if slots - senders}
    if senders:
        return senders
    return receivers if len(receivers) == 1 else set()


def _of_the_sums(ranks: Mapping[int, RankHeard]) -> set[int]:
    wrong = {number for number, rank in ranks.items() if rank.wrong}
    if len(wrong) == 1:
        return wrong
    if wrong != set(ranks):
        return set()
    owners = {one.owners for rank in ranks.values() for one in rank.wrong if one.kind == "routed"}
    if len(owners) == 1 and len(owner := next(iter(owners))) == 1:
        return set(owner)
    return set()


def busbw_gbps(trial: Trial) -> float | None:
    """The median over ranks at the largest size that all of them measured; None where that is nothing."""
    return _at_largest(trial, 1)[1]


def algbw_gbps(trial: Trial) -> float | None:
    return _at_largest(trial, 0)[1]


def _at_largest(trial: Trial, which: int) -> tuple[int, float | None]:
    ranks = [rank for host in trial.heard.values() for rank in host.ranks.values()]
    sizes = set.intersection(*(set(rank.rates) for rank in ranks)) if ranks else set()
    if not sizes or len(ranks) < 2:
        return 0, None
    size = max(sizes)
    return size, median(rank.rates[size][which] for rank in ranks)


def measured_at(trial: Trial) -> int:
    return _at_largest(trial, 1)[0]
