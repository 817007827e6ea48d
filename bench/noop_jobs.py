"""The program that `bench.engine` times, run by the interpreter under test: prints ms per job, all samples, as JSON."""

import json
import sys
import time

import anyio

from probe import engine
from probe.context import Context
from probe.expect import expect
from probe.model import Check, Facts, Finding, Job, Outcome, Plan, Profile, Severity, passed

LATE_S = 60.0


async def noop(_context: Context, _job: Job) -> Finding:
    return passed("ok")


def plan_of(number: int) -> Plan:
    return Plan(Profile.READINESS, tuple(job(f"bench.{n}") for n in range(number)))


def job(name: str) -> Job:
    check = Check(name, noop, question="?", severity=Severity.CRITICAL, profiles=frozenset(Profile))
    return Job(check, "", Severity.CRITICAL)


async def engine_s(plan: Plan) -> float:
    outcomes: list[Outcome] = []
    context = Context(expected=expect(Facts()), facts=Facts())
    began = time.perf_counter()
    await engine.run(plan, context, outcomes.append, engine.Times(already_s=0.0, kill_s=LATE_S, end_s=LATE_S))
    took_s = time.perf_counter() - began
    assert len(outcomes) == len(plan.jobs)
    return took_s


async def tasks_s(number: int) -> float:
    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(anyio.sleep, 0)
    return time.perf_counter() - began


def main(number: int, rounds: int) -> None:
    samples_ms: dict[str, list[float]] = {"engine": [], "task": []}
    plan = plan_of(number)
    for _ in range(rounds):
        samples_ms["engine"].append(anyio.run(engine_s, plan) * 1000 / number)
        samples_ms["task"].append(anyio.run(tasks_s, number) * 1000 / number)
    print(json.dumps(samples_ms))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
