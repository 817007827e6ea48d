"""Runs the planned jobs, all at once, under one budget: the only tasks and the only clock.

::

    job --> per GPU? --> targets --> needs --> check, within its own limit --> outcome --> sink
                                                          at kill_s: `stop` ends the workers, waiters hear why
                                                          at end_s: whatever still waits is cancelled

A check that raises, hangs or is cancelled becomes its status; the run itself never fails. Nothing here knows asyncio:
the tests run it on trio's MockClock.
"""

import traceback
from collections.abc import Awaitable, Callable, Coroutine

import anyio
from anyio.abc import TaskGroup
from msgspec.structs import replace

from probe.context import Context, Target
from probe.model import (
    BAD,
    EVERY_GPU,
    Finding,
    Job,
    NoAnswer,
    Outcome,
    Plan,
    Scalar,
    Severity,
    Status,
    failed,
    skipped,
    unknown,
)

Sink = Callable[[Outcome], None]

GOOD = (Status.PASS, Status.WARN)
OUT_OF_MEMORY = 2
SHORT_S = 1.0
"""No answer within less than this says nothing about who was asked: the budget was too short to ask."""


class Times:
    """The run's instants, as seconds since its start; `already_s` of them had passed when the engine began."""

    def __init__(self, *, already_s: float, kill_s: float, end_s: float) -> None:
        self.already_s = already_s
        self.kill_s = kill_s
        self.end_s = end_s


async def run(
    plan: Plan,
    context: Context,
    sink: Sink,
    times: Times,
    *,
    stop: Callable[[], Awaitable[None]] | None = None,
    background: Callable[[], Coroutine[None, None, None]] | None = None,
    on_error: Callable[[str], None] = lambda text: None,
) -> None:
    """Give `sink` one outcome for every job, or one per target, before `times.end_s`.

    `stop` is called at `times.kill_s` and makes every answer that has not come impossible; `background` runs beside
    the jobs and is cancelled after the last; `on_error` gets the traceback of a check that raised.
    """
    runner = _Runner(plan, context, sink, times, on_error)
    async with anyio.create_task_group() as beside:
        if background is not None:
            beside.start_soon(background)
        if stop is not None:
            beside.start_soon(runner.stop_at, times.kill_s, stop)
        with anyio.CancelScope(deadline=runner.at(times.end_s)):
            async with anyio.create_task_group() as jobs:
                for job in plan.jobs:
                    jobs.start_soon(runner.job, job, jobs)
        beside.cancel_scope.cancel()


class _Runner:
    def __init__(self, plan: Plan, context: Context, sink: Sink, times: Times, on_error: Callable[[str], None]) -> None:
        self._context = context
        self._sink = sink
        self._on_error = on_error
        self._began = anyio.current_time() - times.already_s
        self._status: dict[tuple[str, str], Status] = {}
        self._waiting: dict[tuple[str, str], anyio.Event] = {}
        self._per_gpu = {job.id for job in plan.jobs if job.check.per_gpu}

    def at(self, seconds: float) -> float:
        return self._began + seconds

    def _elapsed_s(self) -> float:
        return anyio.current_time() - self._began

    async def stop_at(self, seconds: float, stop: Callable[[], Awaitable[None]]) -> None:
        await anyio.sleep_until(self.at(seconds))
        await stop()

    async def job(self, job: Job, siblings: TaskGroup) -> None:
        """One planned job: itself, or one of its kind for every GPU."""
        if job.skip:
            self._finish(job, self._elapsed_s(), _demanded(job, skipped(job.skip)))
        elif not job.check.per_gpu:
            await self._one(job, Target(job.target))
        else:
            for target in await self._targets(job):
                siblings.start_soon(self._one, replace(job, target=target.name), target)

    async def _targets(self, job: Job) -> tuple[Target, ...]:
        """The targets of a per-GPU job; where there are none, its one outcome is made here."""
        started_s = self._elapsed_s()
        source = self._context.gpus if job.check.rung == "nvml" else self._context.testable
        finding = skipped("no GPU found")
        try:
            if targets := await source.get():
                return targets
        except NoAnswer as reason:
            missing = await self._missing_need(job, Target(EVERY_GPU))
            finding = skipped(f"needs {missing}") if missing else reason.finding
        except anyio.get_cancelled_exc_class():
            self._finish(job, started_s, self._timeout(job, started_s))
            raise
        self._finish(job, started_s, finding)
        return ()

    async def _one(self, job: Job, target: Target) -> None:
        started_s = self._elapsed_s()
        try:
            if untouchable := await target.skip.get():
                finding = skipped(untouchable)
            elif missing := await self._missing_need(job, target):
                finding = skipped(f"needs {missing}")
            else:
                started_s = self._elapsed_s()
                finding = _demanded(job, await self._within_limit(job, started_s))
        except NoAnswer as reason:
            finding = reason.finding
        except anyio.get_cancelled_exc_class():
            self._finish(job, started_s, self._timeout(job, started_s))
            raise
        self._finish(job, started_s, finding)

    async def _missing_need(self, job: Job, target: Target) -> str:
        """The first need that did not pass, once all before it have; empty when all have."""
        for need in job.needs:
            key = (need, target.name if need in self._per_gpu and job.check.per_gpu else "")
            while key not in self._status:
                await self._waiting.setdefault(key, anyio.Event()).wait()
            if self._status[key] not in GOOD:
                return need
        return ""

    async def _within_limit(self, job: Job, started_s: float) -> Finding:
        try:
            if job.timeout_s is None:
                return await job.check.run(self._context, job)
            with anyio.move_on_after(job.timeout_s):
                return await job.check.run(self._context, job)
            return self._timeout(job, started_s)
        except NoAnswer as reason:
            return reason.finding
        except Exception as error:  # noqa: BLE001 - the one place where a check's own defect becomes its status
            self._on_error(traceback.format_exc())
            return unknown(f"{job.id} raised {type(error).__name__}: {error}", reason="internal")

    def _timeout(self, job: Job, started_s: float) -> Finding:
        """No answer in time, and what the worker it waits for, or the check itself, said it was doing."""
        asked = {job.id, *(name.partition(".")[0] for name in job.check.uses)}
        doing = {self._context.answers.step(name, job.target or job.id) for name in asked} - {""}
        where = f", in {' and '.join(sorted(doing))}" if doing else ""
        summary = f"no answer within {self._elapsed_s() - started_s:.1f} s{where}"
        data: dict[str, Scalar] = {"step": " and ".join(sorted(doing))} if doing else {}
        if job.timeout_s is None and self._elapsed_s() - started_s < SHORT_S:
            data["short"] = True
        return Finding(Status.TIMEOUT, summary, data)

    def _finish(self, job: Job, started_s: float, finding: Finding) -> None:
        key = (job.id, "" if not job.check.per_gpu else job.target)
        self._status[key] = finding.status
        if event := self._waiting.pop(key, None):
            event.set()
        if job.reported or finding.status in BAD:  # a need that was pulled in and is bad is the cause of all the rest
            elapsed_s = self._elapsed_s() - started_s
            self._sink(
                Outcome(
                    id=job.id,
                    target=job.target,
                    status=finding.status,
                    severity=Severity(job.severity),
                    summary=finding.summary,
                    started_s=round(started_s, 4),
                    elapsed_s=round(elapsed_s, 4),
                    data=finding.data,
                    rungs=finding.rungs,
                )
            )


def _demanded(job: Job, finding: Finding) -> Finding:
    """What `ENABLE_<CHECK>_CHECK=true` asks for must be there: a skip is a failure then; out of memory stays a skip."""
    if not job.required or finding.status is not Status.SKIP or finding.data.get("cuda_code") == OUT_OF_MEMORY:
        return finding
    return failed(f"required, and {finding.summary}", **{**finding.data, "reason": "required"})
