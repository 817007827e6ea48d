"""The gate itself: which phase follows which, and what ends it.

::

    reach, node   as for whatever needs several hosts: `muster`
    world      the planner's rounds: the local round, a torchrun world, and where that fails ...
    localise   ... disjoint groups, until who or what is to blame is known ...
    confirm    ... and a world of the survivors

It decides nothing about blame: `trial` says what a test proves, `localise` whom it accuses, `judge` what it adds up to.
"""

import random
import time
from collections.abc import Mapping, Sequence

import anyio
from anyio.abc import TaskGroup

from probe.clock import Budget
from probe.cluster import trial
from probe.cluster.hosts import fold
from probe.cluster.ledger import Problem
from probe.cluster.localise import Kind, Planner, Result
from probe.cluster.localise import Round as Asked
from probe.cluster.member import Member
from probe.cluster.model import HostState, Phase, RoundReport, WorldReport
from probe.cluster.muster import LEFT_FOR_STOP_S, NODE_SHARE, REACH_SHARE, Muster, Settings, links_gbps
from probe.cluster.worlds import Company, Shape, Tester

FEW_S = {"gloo": 2.0, "nccl": 8.0}
"""The same for groups that are tested beside others of which most are done: ten times what a warm round takes."""
SLOW = 0.7
"""Of what the links carry: 8 x 400 Gb/s between two H100 hosts give 370 to 390 of 400 GB/s (0.93)."""
PHASES = {Kind.LOCAL: Phase.NODE, Kind.WORLD: Phase.WORLD, Kind.CONFIRM: Phase.CONFIRM}


class Gate(Muster):
    async def _phases(self, tasks: TaskGroup) -> None:
        await self._reach(tasks)
        self._compare()
        if self.settings.until == "reach" or not self.ledger.taking_part:
            return
        self.ledger.phase = Phase.NODE
        await self._node()
        self._compare()
        if self.settings.until == "node" or not self.ledger.taking_part:
            return
        self._choose()
        self._require_speed()
        await self._rounds()

    def _require_speed(self) -> None:
        """How fast a world must be: as asked, else a part of what the links carry, where that is known."""
        ledger, wanted_gbps = self.ledger, self.settings.min_busbw_gbps
        carried_gbps = [links_gbps(member, ledger.nproc) for member in ledger.taking_part]
        ledger.least_gbps = wanted_gbps
        if ledger.backend == "nccl" and len(carried_gbps) > 1 and all(carried_gbps):
            ledger.least_gbps = wanted_gbps or SLOW * min(carried_gbps)
            if ledger.least_gbps > min(carried_gbps):
                ledger.notes.append(
                    f"--min-busbw {ledger.least_gbps:g} is more than the links carry ({min(carried_gbps):g} GB/s)"
                )

    # -- the planner's rounds -----------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        ledger, settings = self.ledger, self.settings
        ledger.players = players = ledger.taking_part
        if not players:
            return
        planner = ledger.planner = Planner(
            len(players),
            strategy=settings.strategy,
            repeat=settings.repeat,
            local=True,
            min_busbw_gbps=ledger.least_gbps,
            names=[member.name for member in players],
            seed=random.SystemRandom().randrange(1 << 30),
        )
        asking = planner.rounds()
        try:
            asked = next(asking)
            while True:
                if settings.until == "world" and asked.kind not in (Kind.LOCAL, Kind.WORLD):
                    return
                results = await self._round(asked)
                if ledger.setting is not None:
                    return  # it would keep every other group from being tested, too
                asked = asking.send(results)
        except StopIteration:
            ledger.finished = True

    async def _round(self, asked: Asked) -> Sequence[Result]:
        """Test all groups of one round at the same time."""
        ledger = self.ledger
        ledger.phase = PHASES.get(asked.kind, Phase.LOCALISE)
        names = [[ledger.players[host].name for host in group] for group in asked.groups]
        ledger.now_testing(_in_words(asked, names))
        shape = Shape(ledger.backend, ledger.nproc, self.settings.ifname, self.settings.port, self._pace())
        few_s = FEW_S[ledger.backend] * self._load()
        tester = Tester(
            shape, Company(len(asked.groups), few_s), self._jobs, seed=random.SystemRandom().randrange(1 << 20)
        )
        results: list[Result] = [Result(ok=None)] * len(asked.groups)
        began = time.monotonic()

        async def test(at: int, group: tuple[int, ...]) -> None:
            results[at] = await self._group(asked.kind, [ledger.players[host] for host in group], tester)

        async with anyio.create_task_group() as tasks:
            for at, group in enumerate(asked.groups):
                tasks.start_soon(test, at, group)
        words = tuple(_outcome(result, ledger.players, rates=ledger.least_gbps is not None) for result in results)
        elapsed_s = round(time.monotonic() - began, 3)
        groups = tuple(tuple(group) for group in names)
        ledger.rounds.append(RoundReport(asked.n, asked.kind.value, groups, words, elapsed_s))
        ledger.changed()
        return results

    async def _group(self, kind: Kind, members: list[Member], tester: Tester) -> Result:
        lost = [member for member in members if member.gone.is_set()]
        if lost:
            return self._translated(Result(ok=False, absent=tuple(member.index for member in lost), note=lost[0].lost))
        if kind in (Kind.WORLD, Kind.CONFIRM):
            heard = await tester.world(members, avoid=self._bad_rendezvous())
            if self.settings.port and heard.refused and not heard.rendezvous:
                return self._port_taken(heard.refused)
        else:
            heard = await tester.round(members)
        result = trial.read(heard)
        for member in members:
            host = heard.heard[member.index]
            if host.own:
                self.ledger.own.setdefault(member.name, (host.reason, host.own))
        self._note_world(kind, heard, result)
        return self._translated(result)

    def _port_taken(self, refused: Mapping[str, str]) -> Result:
        """No host that was tried can hold the port that was asked for: that says nothing of any host or link."""
        words = f"port {self.settings.port} cannot be had on {fold(refused)} ({next(iter(refused.values()))})"
        problem = Problem(HostState.UNDETERMINED, "gate.world", words, {"reason": "port_taken"}, names_hosts=True)
        self.ledger.setting = problem, tuple(refused)
        return Result(ok=None, note=words)

    def _bad_rendezvous(self) -> list[Member]:
        named = {host for host, problem in self.ledger.warnings if problem.data.get("reason") == "rendezvous"}
        return [member for member in self.ledger.players if member.name in named]

    def _note_world(self, kind: Kind, heard: trial.Trial, result: Result) -> None:
        """What a world, or a local round, measured, and whom nobody could reach as its rendezvous."""
        ledger = self.ledger
        gbps = trial.busbw_gbps(heard)
        if kind is Kind.LOCAL and gbps is not None:
            ledger.local_gbps[heard.members[0].name] = gbps
        if kind not in (Kind.WORLD, Kind.CONFIRM):
            return
        for name in heard.no_rendezvous if heard.rendezvous else ():  # formed around another: only the port is at fault
            words = f"the others cannot reach its port: {'; '.join(heard.unreached)}"[:400]
            ledger.warn(name, Problem(HostState.READY, "gate.world", words, {"reason": "rendezvous"}))
        if not result.ok:
            ledger.world_note = result.note
            return
        ranks = [rank for host in heard.heard.values() for rank in host.ranks.values()]
        ledger.world = WorldReport(
            hosts=len(heard.members),
            ranks=len(ranks),
            backend=ledger.backend,
            rendezvous=heard.rendezvous,
            verified=min(rank.verified for rank in ranks),
            largest_bytes=min(rank.largest_bytes for rank in ranks),
            algbw_gbps=trial.algbw_gbps(heard),
            busbw_gbps=gbps,
            at_bytes=trial.measured_at(heard),
        )

    def _translated(self, result: Result) -> Result:
        """With the planner's numbers for hosts."""
        number = {member.index: at for at, member in enumerate(self.ledger.players)}
        return Result(
            ok=result.ok,
            absent=tuple(number[index] for index in result.absent),
            wrong=tuple(number[index] for index in result.wrong),
            busbw_gbps=result.busbw_gbps,
            note=result.note,
        )


def _in_words(asked: Asked, names: Sequence[Sequence[str]]) -> str:
    if asked.kind in (Kind.WORLD, Kind.CONFIRM):
        return f"a world of {len(names[0])} hosts"
    if asked.kind is Kind.LOCAL:
        return f"{len(names)} hosts, each alone"
    shown = ", ".join("-".join(group) for group in names[:6])
    return f"{shown}{f' and {len(names) - 6} more' if len(names) > 6 else ''}"


def _outcome(result: Result, players: Sequence[Member], *, rates: bool) -> str:
    """`rates`: how fast it was matters, since something is asked of it."""
    named = [players[host].name for host in (*result.absent, *result.wrong)]
    word = "passed" if result.ok else "not tested" if result.ok is None else "failed"
    about = f" ({', '.join(named)})" if named else ""
    if rates and result.ok and result.busbw_gbps is not None:
        about = f" at {result.busbw_gbps:.3g} GB/s"
    return f"{word}{about}{f': {result.note}' if result.note and not result.ok else ''}"[:400]


def describe(settings: Settings, launcher: str, budget_s: float, clean_hostfile: str = "") -> str:
    """What a run with these settings, which are all right, would do: ``--dry-run``."""
    budget = Budget(0.0, budget_s)
    count = len(settings.hosts)
    ranks = f"{settings.nproc} ranks" if settings.nproc else "a rank for each GPU, or one,"
    lines = [
        f"{count} {'host' if count == 1 else 'hosts'} by {launcher}: {fold(host.name for host in settings.hosts)}",
        f"budget {budget_s:g} s; agents are told to leave at {budget.kill_s - LEFT_FOR_STOP_S:.0f} s",
        f"reach     connect, {settings.concurrency} at a time, within {REACH_SHARE * budget_s:.0f} s",
        f"node      probe check --profile node on every host at once, within {NODE_SHARE * budget_s:.0f} s",
        f"world     torchrun on every host, {ranks} on each, backend {settings.backend}; every word is verified",
        f"localise  only where that fails: disjoint groups, strategy {settings.strategy}, each test {settings.repeat}x",
        "confirm   a world of those that work",
    ]
    if settings.skip_node:
        lines[3] = "node      skipped; torch is imported"
    last = {"reach": 3, "node": 4, "world": 5, "": 7}[settings.until]
    lines = lines[:last]
    if settings.min_hosts:
        lines.append(f"enough    {settings.min_hosts} of {count}")
    if clean_hostfile:
        lines.append(f"clean     {clean_hostfile}, where a set of hosts is confirmed")
    return "\n".join(lines) + "\n"
