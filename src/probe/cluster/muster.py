"""What comes before hosts are tested together, for whatever needs them: reach them, check them, choose what runs.

::

    reach      every host at once: connect, agent, facts; torch is imported there from now on
    node       every host at once: its own check, node profile
    choose     backend and ranks, the same for all
    ...        what a `Muster` is for: `gate.Gate`, or the bench across hosts
    stop       every agent told to leave, and heard out, however the rest ended

All that is learned goes into the ledger at once, so that whoever must report early has it. Over 300 lines because the
phases share one budget: who is cut off where, and what that says of a host, stands beside how it is reached.
"""

from abc import ABC, abstractmethod
from itertools import count

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from probe.clock import Budget
from probe.cluster.hosts import Host, fold
from probe.cluster.launch import Launcher, NotReached
from probe.cluster.ledger import Ledger, Problem
from probe.cluster.member import Member
from probe.cluster.model import HostState
from probe.cluster.node import judge as judge_node
from probe.cluster.protocol import TICK_S, AnyMessage, Ended, Node, NodeReport, Stop, Warm
from probe.cluster.worlds import Pace, Stream

REACH_SHARE = 0.35
"""Of the budget, at most, for reaching hosts and again for their own checks: one that hangs must not eat the rest."""
NODE_SHARE = 0.5
NODE_S = 60.0
"""The node profile's own budget."""
GREET_S = 15.0
"""From the start of the agent's interpreter to its first line: 60 ms here, seconds from a cold network disk."""
NO_AGENT = {"other_version": HostState.SKEWED, "slurm_ended": HostState.UNDETERMINED}
"""By the launcher's reason, hosts without an agent that are not unreachable; the latter's step ended with others'."""
STOP_S = 3.0
"""For agents to kill and reap what they started (2 s at most) and to say so."""
LEFT_FOR_STOP_S = 0.5
SLOW_IMPORT_S = 4.0
"""The slowest import of torch on an idle host (an H100 host took 3.0 to 4.7 s): what takes longer is a sign of load,
and every limit grows with it."""
STALLS_S = {"gloo": 6.0, "nccl": 20.0}
"""A warm round takes 0.2 s with gloo and 1.25 s with NCCL (measured): in this time nothing at all was heard."""
STALL_PER_HOST_S = 0.02
MOST_OF_THE_REST = 0.4
"""Of what is left of the budget, for one group: the planner needs several rounds."""


class Settings(Struct, frozen=True):
    """What is asked of one gate; a bench across hosts asks less."""

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


class Muster(ABC):
    def __init__(self, settings: Settings, launcher: Launcher, budget: Budget, ledger: Ledger) -> None:
        self.settings = settings
        self.launcher = launcher
        self.budget = budget
        self.ledger = ledger
        self._jobs = count(1)  # 0 is the importer's
        self._tried_at: dict[str, float] = {}
        """By host: when its turn to be reached came."""

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

    @abstractmethod
    async def _phases(self, tasks: TaskGroup) -> None:
        """What is done, in its order; `tasks` holds what goes on until the end."""

    # -- reach --------------------------------------------------------------------------------------------------------

    async def _reach(self, tasks: TaskGroup) -> None:
        limiter = anyio.CapacityLimiter(max(1, self.settings.concurrency))
        self.ledger.now_testing(f"reaching {len(self.settings.hosts)} hosts")
        share_s = REACH_SHARE * self.budget.budget_s
        with anyio.move_on_after(share_s):
            async with anyio.create_task_group() as reaching:
                for index, host in enumerate(self.settings.hosts):
                    reaching.start_soon(self._reach_one, index, host, limiter, tasks)
        for host in self.settings.hosts:
            if host.name not in self.ledger.members and host.name not in self.ledger.out:
                self._cut_short(host, share_s)

    async def _reach_one(self, index: int, host: Host, limiter: anyio.CapacityLimiter, tasks: TaskGroup) -> None:
        try:
            async with limiter:
                self._tried_at[host.name] = anyio.current_time()
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
        state = NO_AGENT.get(reason.reason, HostState.UNREACHABLE)
        self.ledger.leave_out(host.name, Problem(state, "gate.reach", reason.summary, {"reason": reason.reason}))

    def _cut_short(self, host: Host, share_s: float) -> None:
        """The time for reaching hosts was over before this one's own limit was: that says nothing of it."""
        tried_at = self._tried_at.get(host.name)
        if tried_at is None:
            words, reason = f"not tried within {share_s:.1f} s ({self.settings.concurrency} at a time)", "not_tried"
        else:
            words, reason = f"gave no answer in the {anyio.current_time() - tried_at:.1f} s that it had", "cut_short"
        self.ledger.leave_out(host.name, Problem(HostState.UNDETERMINED, "gate.reach", words, {"reason": reason}))

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
        what = "check themselves and import torch" if any(map(self._is_checked, members)) else "import torch"
        self.ledger.now_testing(f"{len(members)} hosts {what}")
        limit_s = min(NODE_SHARE * self.budget.budget_s, self._left_s())
        with anyio.move_on_after(limit_s):
            async with anyio.create_task_group() as tasks:
                for member in members:
                    tasks.start_soon(self._node_one, member, limit_s)
        for member in self.ledger.taking_part:
            self._judge_importer(member)

    def _is_checked(self, _member: Member) -> bool:
        """Whether a host's own check is wanted."""
        return not self.settings.skip_node

    async def _node_one(self, member: Member, limit_s: float) -> None:
        if self._is_checked(member):
            await self._check(member, min(NODE_S, max(1.0, limit_s - 2.5)))
        await member.warm.wait()
        self.ledger.changed()

    async def _check(self, member: Member, budget_s: float) -> None:
        with Stream(next(self._jobs), [member]) as stream:
            await member.send(Node(job=stream.job, budget_s=budget_s))
            message: AnyMessage | None = None
            while not isinstance(message, NodeReport | Ended):
                _, message = await stream.receive.receive()
                if message is None:
                    return
        # the report comes before the end: without one it could not even be started
        report = message.report if isinstance(message, NodeReport) else None
        found = self.ledger.nodes[member.name] = judge_node(report, message.text, budget_s=budget_s)
        if found.state is not HostState.READY:
            data = {"reason": found.reason}
            problem = Problem(found.state, "gate.node", found.summary, data, found.code, found.remedy, found.who)
            self.ledger.leave_out(member.name, problem)
        for code, summary, remedy, who in found.warnings:
            self.ledger.warn(member.name, Problem(HostState.READY, "gate.node", summary, {}, code, remedy, who))

    def _judge_importer(self, member: Member) -> None:
        """Without torch no rank can be started there."""
        checked = member.name in self.ledger.nodes or not self._is_checked(member)
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

    def _gpus(self, member: Member) -> int:
        """How many GPUs ranks could have there."""
        if not (member.torch and member.torch.cuda and member.facts):
            return 0
        found = self.ledger.nodes.get(member.name)
        return found.gpus if found else member.facts.gpus

    def _compare(self) -> None:
        """Two names of one machine, and clocks that are off: warnings, once."""
        seen: dict[str, list[str]] = {}
        for member in sorted(self.ledger.members.values(), key=lambda member: member.index):
            if member.facts and self.launcher.name != "local":
                seen.setdefault(member.facts.machine, []).append(member.name)
        warned = {host for host, problem in self.ledger.warnings if problem.data.get("reason") == "same_machine"}
        for names in seen.values():
            if len(names) > 1 and not warned & set(names):
                words = f"{fold(names)} are one machine (the same boot and network namespace)"
                problem = Problem(HostState.READY, "gate.reach", words, {"reason": "same_machine"}, names_hosts=True)
                self.ledger.warn(names[0], problem)

    def _pace(self) -> Pace:
        stall_s = STALLS_S[self.ledger.backend] + STALL_PER_HOST_S * len(self.ledger.taking_part)
        stall_s *= self._load()
        rest_s = max(2.0, MOST_OF_THE_REST * self._left_s())
        return Pace(stall_s=min(stall_s, rest_s), limit_s=rest_s)

    def _load(self) -> float:
        """By how much longer things take here than on an idle host, as the imports of torch show."""
        slowest_s = max((member.import_s for member in self.ledger.taking_part), default=0.0)
        return max(1.0, slowest_s / SLOW_IMPORT_S)

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
