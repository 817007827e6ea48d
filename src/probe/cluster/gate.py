"""The gate itself: which phase follows which, and what ends it.

::

    reach      every host at once: connect, agent, facts; torch is imported there from now on
    node       every host at once: its own check, node profile
    world      the planner's rounds: the local round, a torchrun world, and where that fails ...
    localise     ... disjoint groups, until who or what is to blame is known ...
    confirm      ... and a world of the survivors

It decides nothing about blame: `trial` says what a test proves, `localise` whom it accuses, `judge` what it adds up to.
All that is learned goes into the ledger at once, so that whoever must report early has it. Over 300 lines because the
phases, their limits and what ends them are one sequence, and stand here in its order.
"""

import random
import time
from collections.abc import Sequence
from itertools import count

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from probe.clock import Budget
from probe.cluster import trial
from probe.cluster.hosts import Host, fold
from probe.cluster.launch import Launcher, NotReached
from probe.cluster.ledger import Ledger, Problem
from probe.cluster.localise import Kind, Planner, Result
from probe.cluster.localise import Round as Asked
from probe.cluster.member import Member
from probe.cluster.model import HostState, Phase, RoundReport, WorldReport
from probe.cluster.node import judge as judge_node
from probe.cluster.protocol import TICK_S, Node, NodeReport, Stop, Warm
from probe.cluster.worlds import Company, Pace, Shape, Stream, Tester

REACH_SHARE = 0.35
"""Of the budget, at most, for reaching hosts and again for their own checks: one that hangs must not eat the rest."""
NODE_SHARE = 0.5
NODE_S = 60.0
"""The node profile's own budget."""
GREET_S = 15.0
"""From the start of the agent's interpreter to its first line: 60 ms here, seconds from a cold network disk."""
STOP_S = 3.0
"""For agents to kill and reap what they started (2 s at most) and to say so."""
LEFT_FOR_STOP_S = 0.5
SLOW_IMPORT_S = 4.0
"""The slowest import of torch on an idle host (an H100 host took 3.0 to 4.7 s): what takes longer is a sign of load,
and every limit grows with it."""
STALLS_S = {"gloo": 6.0, "nccl": 20.0}
"""A warm round takes 0.2 s with gloo and 1.25 s with NCCL (measured): in this time nothing at all was heard."""
STALL_PER_HOST_S = 0.02
FEW_S = {"gloo": 2.0, "nccl": 8.0}
"""The same for groups that are tested beside others of which most are done: ten times what a warm round takes."""
MOST_OF_THE_REST = 0.4
"""Of what is left of the budget, for one group: the planner needs several rounds."""
SLOW = 0.7
"""Of what the links carry: 8 x 400 Gb/s between two H100 hosts give 370 to 390 of 400 GB/s (0.93)."""
PHASES = {Kind.LOCAL: Phase.NODE, Kind.WORLD: Phase.WORLD, Kind.CONFIRM: Phase.CONFIRM}


class Settings(Struct, frozen=True):
    """What is asked of one gate."""

    hosts: tuple[Host, ...]
    until: str = ""
    """reach, node or world; empty: all the way."""
    backend: str = "auto"
    ifname: str = ""
    port: int = 0
    nproc: int = 0
    """0: one rank for each GPU, or one."""
    min_hosts: int = 0
    min_busbw_gbps: float | None = None
    strategy: str = "thorough"
    repeat: int = 1
    skip_node: bool = False
    concurrency: int = 64


class Gate:
    def __init__(self, settings: Settings, launcher: Launcher, budget: Budget, ledger: Ledger) -> None:
        self.settings = settings
        self.launcher = launcher
        self.budget = budget
        self.ledger = ledger
        self._jobs = count(1)  # 0 is the importer's

    def _left_s(self) -> float:
        """Until agents must be stopped, so that nothing is left anywhere when the budget is over."""
        return self.budget.left_s(self.budget.kill_s - LEFT_FOR_STOP_S)

    async def run(self) -> None:
        """All phases, as far as they are wanted and the budget lasts; nothing is left running on any host."""
        async with self.launcher, anyio.create_task_group() as tasks:
            try:
                with anyio.move_on_after(self._left_s()) as scope:
                    await self._phases(tasks)
                self.ledger.over = scope.cancelled_caught
            finally:
                await self._stop()
                tasks.cancel_scope.cancel()

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
        await self._rounds()

    # -- reach --------------------------------------------------------------------------------------------------------

    async def _reach(self, tasks: TaskGroup) -> None:
        limiter = anyio.CapacityLimiter(max(1, self.settings.concurrency))
        self.ledger.now_testing(f"reaching {len(self.settings.hosts)} hosts")
        with anyio.move_on_after(REACH_SHARE * self.budget.budget_s):
            async with anyio.create_task_group() as reaching:
                for index, host in enumerate(self.settings.hosts):
                    reaching.start_soon(self._reach_one, index, host, limiter, tasks)
        for host in self.settings.hosts:
            if host.name not in self.ledger.members:
                self._not_reached(host, NotReached("unreachable", "it gave no answer in time"))

    async def _reach_one(self, index: int, host: Host, limiter: anyio.CapacityLimiter, tasks: TaskGroup) -> None:
        try:
            async with limiter:
                member = Member(index, host, await self.launcher.open(host))
                await self._greet(member)
        except NotReached as reason:
            self._not_reached(host, reason)
            return
        self.ledger.members[host.name] = member
        tasks.start_soon(member.converse)
        tasks.start_soon(self._tick, member)
        tasks.start_soon(self._watch, member)
        if not member.address:
            words = f"its interface {self.settings.ifname} has no IPv4 address"
            self.ledger.leave_out(host.name, Problem(HostState.BAD, "gate.reach", words, {"reason": "no_address"}))
        elif self.settings.until != "reach":
            await member.send(Warm())
        self.ledger.changed()

    async def _greet(self, member: Member) -> None:
        """Hear who it is; an agent that is not ours to work with is let go at once."""
        met = False
        try:
            with anyio.fail_after(GREET_S):
                await member.greet(self.budget.left_s(self.budget.budget_s), self.settings.ifname)
            met = True
        except TimeoutError:
            raise NotReached("agent_failed", f"the agent said nothing within {GREET_S:.0f} s") from None
        finally:
            if not met:
                with anyio.CancelScope(shield=True):
                    await member.channel.close()

    def _not_reached(self, host: Host, reason: NotReached) -> None:
        state = HostState.SKEWED if reason.reason == "other_version" else HostState.UNREACHABLE
        self.ledger.leave_out(host.name, Problem(state, "gate.reach", reason.summary, {"reason": reason.reason}))

    async def _tick(self, member: Member) -> None:
        while not member.gone.is_set():
            await member.tick()
            with anyio.move_on_after(TICK_S):
                await member.gone.wait()

    async def _watch(self, member: Member) -> None:
        """An agent that is lost in the middle: its host takes no further part."""
        await member.gone.wait()
        if member.lost != "stop":
            problem = Problem(HostState.ABSENT, "gate.reach", f"its agent was lost: {member.lost}", {"reason": "lost"})
            self.ledger.leave_out(member.name, problem)

    # -- node ---------------------------------------------------------------------------------------------------------

    async def _node(self) -> None:
        members = self.ledger.taking_part
        what = "import torch" if self.settings.skip_node else "check themselves and import torch"
        self.ledger.now_testing(f"{len(members)} hosts {what}")
        limit_s = min(NODE_SHARE * self.budget.budget_s, self._left_s())
        with anyio.move_on_after(limit_s):
            async with anyio.create_task_group() as tasks:
                for member in members:
                    tasks.start_soon(self._node_one, member, limit_s)
        for member in self.ledger.taking_part:
            self._judge_importer(member)

    async def _node_one(self, member: Member, limit_s: float) -> None:
        if not self.settings.skip_node:
            await self._check(member, min(NODE_S, max(1.0, limit_s - 2.5)))
        await member.warm.wait()
        self.ledger.changed()

    async def _check(self, member: Member, budget_s: float) -> None:
        with Stream(next(self._jobs), [member]) as stream:
            await member.send(Node(job=stream.job, budget_s=budget_s))
            while True:
                _, message = await stream.receive.receive()
                if message is None:
                    return
                if isinstance(message, NodeReport):
                    break
        found = self.ledger.nodes[member.name] = judge_node(message.report, message.text, budget_s=budget_s)
        if found.state is not HostState.READY:
            data = {"reason": "busy" if found.state is HostState.BUSY else "node"}
            problem = Problem(found.state, "gate.node", found.summary, data, found.code, found.remedy, found.who)
            self.ledger.leave_out(member.name, problem)
        for code, summary, remedy, who in found.warnings:
            self.ledger.warn(member.name, Problem(HostState.READY, "gate.node", summary, {}, code, remedy, who))

    def _judge_importer(self, member: Member) -> None:
        """Without torch no rank can be started there."""
        checked = self.settings.skip_node or member.name in self.ledger.nodes
        if member.importer_error:
            missing = bool(member.torch and not member.torch.python)
            words = f"torch cannot be imported there: {member.importer_error}"
            data = {"reason": "no_torch" if missing else "import_failed"}
            self.ledger.leave_out(member.name, Problem(HostState.BAD, "gate.node", words, data))
        elif not member.warm.is_set() or not checked:
            what = "its own check gave no report" if not checked else "torch was not imported"
            words = f"{what} within {self.budget.elapsed_s():.0f} s"
            problem = Problem(HostState.UNDETERMINED, "gate.node", words, {"reason": "node_late"})
            self.ledger.leave_out(member.name, problem)

    # -- what all have in common --------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Backend and ranks for each host, the same for all: what most hosts can do; the others are skewed."""
        ledger, settings = self.ledger, self.settings
        members = ledger.taking_part
        gpus = {member.name: self._gpus(member) for member in members}
        with_gpus = [name for name, count in gpus.items() if count]
        backend = settings.backend
        if backend == "auto":
            backend = "nccl" if 2 * len(with_gpus) > len(members) else "gloo"
        nproc = settings.nproc
        if backend == "nccl":
            counts = sorted(gpus[name] for name in with_gpus)
            nproc = nproc or (counts[len(counts) // 2] if counts else 1)
            for member in members:
                if gpus[member.name] < nproc:
                    words = f"{gpus[member.name]} GPUs with torch for CUDA, {nproc} are needed on each host"
                    problem = Problem(HostState.SKEWED, "gate.node", words, {"reason": "fewer_gpus"})
                    ledger.leave_out(member.name, problem)
        ledger.backend, ledger.nproc = backend, nproc or 1
        carried_gbps = [links_gbps(member, ledger.nproc) for member in ledger.taking_part]
        ledger.least_gbps = settings.min_busbw_gbps
        if backend == "nccl" and len(carried_gbps) > 1 and all(carried_gbps):
            ledger.least_gbps = settings.min_busbw_gbps or SLOW * min(carried_gbps)
            if ledger.least_gbps > min(carried_gbps):
                ledger.notes.append(
                    f"--min-busbw {ledger.least_gbps:g} is more than the links carry ({min(carried_gbps):g} GB/s)"
                )

    def _gpus(self, member: Member) -> int:
        """How many GPUs ranks could have there."""
        if not (member.torch and member.torch.cuda and member.facts):
            return 0
        found = self.ledger.nodes.get(member.name)
        return found.gpus if found else member.facts.gpus

    def _compare(self) -> None:
        """Two names of one machine, and clocks that are off: warnings, once."""
        seen: dict[str, list[str]] = {}
        for member in self.ledger.members.values():
            if member.facts and self.launcher.name != "local":
                seen.setdefault(member.facts.machine, []).append(member.name)
        warned = {host for host, problem in self.ledger.warnings if problem.data.get("reason") == "same_machine"}
        for names in seen.values():
            if len(names) > 1 and not warned & set(names):
                words = f"{fold(names)} are one machine (the same boot and network namespace)"
                self.ledger.warn(names[0], Problem(HostState.READY, "gate.reach", words, {"reason": "same_machine"}))

    # -- the planner's rounds -----------------------------------------------------------------------------------------

    def _pace(self) -> Pace:
        stall_s = STALLS_S[self.ledger.backend] + STALL_PER_HOST_S * len(self.ledger.taking_part)
        stall_s *= self._load()
        rest_s = max(2.0, MOST_OF_THE_REST * self._left_s())
        return Pace(stall_s=min(stall_s, rest_s), limit_s=rest_s)

    def _load(self) -> float:
        """By how much longer things take here than on an idle host, as the imports of torch show."""
        slowest_s = max((member.import_s for member in self.ledger.taking_part), default=0.0)
        return max(1.0, slowest_s / SLOW_IMPORT_S)

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
                asked = asking.send(await self._round(asked))
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
        else:
            heard = await tester.round(members)
        result = trial.read(heard)
        for member in members:
            host = heard.heard[member.index]
            if host.own:
                self.ledger.own.setdefault(member.name, (host.reason, host.own))
        self._note_world(kind, heard, result)
        return self._translated(result)

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

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        """Tell every agent to leave, and hear that nothing of theirs is left."""
        self.ledger.now_testing("stopping")
        bound_s = max(LEFT_FOR_STOP_S, min(STOP_S, self.budget.left_s(self.budget.reaped_s)))
        with anyio.CancelScope(shield=True), anyio.move_on_after(bound_s):
            async with anyio.create_task_group() as tasks:
                for member in self.ledger.members.values():
                    tasks.start_soon(self._stop_one, member)

    async def _stop_one(self, member: Member) -> None:
        if not member.gone.is_set():
            await member.send(Stop())
            await member.gone.wait()
        await member.channel.close()


def links_gbps(member: Member, nproc: int) -> float:
    """What a host's InfiniBand or RoCE ports carry for so many ranks, in GB/s; 0: not known, and so not judged.

    Its fastest ports only, and no more of them than ranks: beside one for each GPU there are others, for storage.
    """
    ports = [port.rate_gbps for port in member.facts.infiniband if port.state == "ACTIVE"] if member.facts else []
    fastest = [rate for rate in ports if rate == max(ports)]
    return sum(fastest[:nproc]) / 8


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


def describe(settings: Settings, launcher: str, budget_s: float) -> str:
    """What a run with these settings would do: ``--dry-run``."""
    budget = Budget(0.0, budget_s)
    count = len(settings.hosts)
    ranks = f"{settings.nproc} ranks" if settings.nproc else "a rank for each GPU, or one,"
    lines = [
        f"{count} hosts by {launcher}: {fold(host.name for host in settings.hosts)}",
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
    return "\n".join(lines[:last]) + "\n"
