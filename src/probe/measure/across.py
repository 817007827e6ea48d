"""``probe bench`` across hosts: from its settings to its exit.

::

    reach, node   as in the gate (`cluster.muster`): a host that cannot take part ends it, by its name
    measure       a rank for each GPU, or one on each host, all in one group: the collectives, every word verified
    leave         joined over ranks -> limits, comparison -> files -> table -> os._exit, inside the event loop

Whoever ends the run - its end, a net, a signal - ends it through `AcrossRun.leave`, with what the ranks have said.
"""

import os
import random
import re
import time
from collections.abc import Callable
from typing import NoReturn

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from probe.attempt import CURRENT
from probe.clock import Budget
from probe.cluster import trial
from probe.cluster.hosts import fold
from probe.cluster.launch import Launcher
from probe.cluster.ledger import Ledger
from probe.cluster.member import Member
from probe.cluster.model import HostState, Phase
from probe.cluster.muster import Muster, Settings
from probe.cluster.run import allow_connections, launcher
from probe.cluster.targets import CONCURRENCY, Named
from probe.cluster.trial import Trial
from probe.cluster.worlds import Company, Pace, Shape, Tester
from probe.config import UsageError
from probe.measure import baseline, delivery, filing, hosts, shares
from probe.measure.ending import Ending, defect, reason_of
from probe.measure.model import Done, Program
from probe.measure.request import Request
from probe.model import Config
from probe.worker.parent import Children

PROGRAM = shares.BY_NAME["collective"]
SMALLEST_S = 5.0
"""As for a gate: less does not hold a connection and an import of torch."""
LEFT_TO_END_S = 1.0
"""For ranks that are killed at their limit to be heard out, before the agents are stopped."""
QUIET = 0.5
"""Of the share: a rank says what it does before each case, and one that may take longer than this is left out."""


class Course(Struct):
    """How far it has come; read at any moment by whoever must report."""

    trial: Trial | None = None
    share_s: float = 0.0
    began_at: float = 0.0
    outcome: tuple[Done, str] | None = None
    complaint: UsageError | None = None
    """The baseline is of other hardware."""


class Measuring(Muster):
    """Reach, check and measure."""

    def __init__(
        self,
        settings: Settings,
        agents: Launcher,
        budget: Budget,
        ledger: Ledger,
        course: Course,
        agree: Callable[[], None],
    ) -> None:
        """`agree` is called before anything is measured, and raises UsageError where that would be in vain."""
        super().__init__(settings, agents, budget, ledger)
        self._course = course
        self._agree = agree

    async def _phases(self, tasks: TaskGroup) -> None:
        await self._reach(tasks)
        self._compare()
        self.ledger.phase = Phase.NODE
        if not self.ledger.out:
            await self._node()
        if not self.ledger.out:
            self._choose()
        if self.ledger.out:
            self._course.outcome = Done.FAIL, left_out(self.ledger)
            return
        try:
            self._agree()
        except UsageError as error:
            self._course.complaint = error
            return
        self.ledger.phase = Phase.WORLD
        self._course.outcome = await self._measure()

    def _is_checked(self, member: Member) -> bool:
        """Its GPUs must be idle, and compute; processes on CPUs disturb nobody more than the measuring itself does."""
        gpus = self.settings.backend != "gloo" and member.facts is not None and member.facts.gpus > 0
        return gpus and not self.settings.skip_node

    async def _measure(self) -> tuple[Done, str]:
        ledger, course = self.ledger, self._course
        members, ranks = ledger.taking_part, ledger.nproc * len(ledger.taking_part)
        course.began_at = time.monotonic()
        left_s = self._left_s()
        course.share_s = shares.planned_s(left_s)
        if ranks < 2:
            return Done.SKIP, "needs two ranks"
        if course.share_s < PROGRAM.least_s + shares.FORK_S:
            return Done.SKIP, "no time"
        ledger.now_testing(f"collectives over {ranks} ranks of {len(members)} hosts")
        child_s, limit_s = shares.times(course.share_s)
        stall_s = max(self._pace().stall_s, QUIET * child_s)
        pace = Pace(stall_s=stall_s, limit_s=max(child_s, min(limit_s, left_s - LEFT_TO_END_S)))
        shape = Shape(ledger.backend, ledger.nproc, self.settings.ifname, self.settings.port, pace)
        course.trial = Trial(members, ledger.nproc, processes=ledger.nproc)
        tester = Tester(shape, Company(1, stall_s), self._jobs, seed=random.SystemRandom().randrange(1 << 20))
        await tester.measure(course.trial, child_s)
        return outcome(course.trial)


def outcome(heard: Trial) -> tuple[Done, str]:
    """How the measuring ended, and why."""
    found = trial.read(heard)
    if heard.done and not found.absent:
        return Done.DONE, ""
    if heard.out_of_time and heard.getting_on and not found.absent:
        return Done.DONE, "no time: our own clock ended the last case"
    own = [f"{member.name}: {words}" for member in heard.members if (words := heard.heard[member.index].own)]
    return Done.FAIL, "; ".join(own) or f"{found.note or 'it did not end'}; probe gate finds out whose fault it is"


def left_out(ledger: Ledger) -> str:
    """Who cannot take part, and why, each reason once."""
    by_words: dict[str, list[str]] = {}
    for host in ledger.hosts:
        if (problem := ledger.out.get(host.name)) is not None:
            hint = "; --busy test measures all the same" if problem.state is HostState.BUSY else ""
            by_words.setdefault(problem.summary + hint, []).append(host.name)
    return "; ".join(f"{fold(names)}: {words}" for words, names in by_words.items())


class AcrossRun:
    def __init__(self, request: Request, named: Named, settings: Settings) -> None:
        self.request = request
        self.named = named
        self.budget = Budget(CURRENT.budget.began_at, request.time_s)
        self.children = Children()
        self.ledger = Ledger(named.hosts, named.launcher)
        self.settings = settings
        self.course = Course()
        self.progress: object = None
        self._ending = Ending()

    def go(self) -> NoReturn:
        """Measure, report and leave the process; raises UsageError where the baseline is of other hardware."""
        CURRENT.leave = self.leave
        CURRENT.watch(self.budget)
        allow_connections()

        async def main() -> None:
            if os.isatty(2) and os.environ.get("TERM") != "dumb":
                from probe.cluster.progress import Progress

                self.progress = Progress(self.ledger, self.budget)
            config = self.request.loaded.config
            environment = {"PROBE_PYTHON": config.python}
            agents = launcher(
                self.named, self.children, self.request.time_s, environment=environment, state=config.state or ""
            )
            await Measuring(self.settings, agents, self.budget, self.ledger, self.course, self._agree).run()
            if self.course.complaint is None:
                self.leave("")

        try:
            anyio.run(main)
        except Exception as error:  # noqa: BLE001 - a defect of probe: what is measured is kept, and the defect said
            self.leave(f"broken off ({defect(error)})")
        self._ending.begun = True
        self._end()
        assert self.course.complaint is not None
        raise self.course.complaint

    def _agree(self) -> None:
        if self.request.baseline is not None:
            now = hosts.provenance(self.ledger, None)
            baseline.refuse_other_hardware(self.request.baseline, now, self.request.compare)

    def leave(self, why: str) -> None:
        """Write what is known and leave; `why` as `Ending.leave` has it."""
        self._ending.leave(why, lambda: self._write(why), self.children.kill)

    def _end(self, *, late: bool = False) -> None:
        if self.progress is not None:
            self.progress.close()  # type: ignore[attr-defined]
        if not late:
            self.children.reap(min(1.0, max(self.budget.left_s(self.budget.reaped_s), 0.05)))

    def _write(self, why: str) -> int:
        self._end(late=why == "late")
        report = delivery.report(self.request, self._known(why), self.budget, why)
        return delivery.write_all(self.request, report, self.budget, self._ending)

    def _known(self, why: str) -> delivery.Known:
        """What the ranks have said so far, as results."""
        course = self.course
        said, complaints = hosts.said(course.trial)
        filed = filing.file(PROGRAM.name, said)
        status, reason = course.outcome or (Done.FAIL, reason_of(why))
        wrong = [self._with_host(words) for words in [*complaints, *filed.wrong]]
        if wrong:
            status, reason = Done.FAIL, "; ".join([*filter(None, [reason]), *wrong[:3]])
        if status is Done.DONE and not filed.results:
            status, reason = Done.SKIP, "no time" if filed.left_out else "nothing measured"
        elapsed_s = time.monotonic() - course.began_at if course.began_at else 0.0
        program = Program(
            PROGRAM.name, status, reason, round(course.share_s, 3), round(elapsed_s, 3), tuple(filed.left_out)
        )
        return delivery.Known(
            hosts.provenance(self.ledger, course.trial),
            (program,),
            tuple(filed.results),
            tuple(self.ledger.notes),
            broken_off=status is Done.FAIL or bool(course.trial and course.trial.out_of_time),
        )

    def _with_host(self, words: str) -> str:
        """With the host's name after each rank that is named."""
        trial_ = self.course.trial
        names = [member.name for member in trial_.members] if trial_ else []
        each = max(1, self.ledger.nproc)

        def named(found: re.Match[str]) -> str:
            at = int(found[1]) // each
            return f"{found[0]} ({names[at]})" if at < len(names) else found[0]

        return re.sub(r"on rank (\d{1,7})", named, words)


def settings(config: Config, named: Named, ifname: str, port: int) -> Settings:
    """What is asked of the hosts: `device` chooses GPUs or CPU processes, as on one host."""
    kind, _, count = config.device.partition(":")
    return Settings(
        hosts=named.hosts,
        backend={"cpu": "gloo", "cuda": "nccl"}.get(kind, "auto"),
        nproc=int(count or 0),
        ifname=ifname,
        port=port,
        skip_node=config.busy == "test",
        concurrency=CONCURRENCY,
    )
