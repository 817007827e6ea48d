"""Reaching hosts: who was not asked, or had no full time to answer, is blamed for nothing. On trio's MockClock.

And their own checks: one that cannot be started holds nobody up.
"""

import json
import time
from types import TracebackType
from typing import Any, Self, cast

import anyio
from trio.testing import MockClock

from probe.clock import Budget
from probe.cluster.gate import Gate
from probe.cluster.hosts import Host
from probe.cluster.launch import Channel, NotReached
from probe.cluster.ledger import Ledger
from probe.cluster.member import Member
from probe.cluster.model import HostState
from probe.cluster.muster import Settings
from probe.cluster.protocol import Ended


class Deaf:
    """A launcher whose hosts never answer, and give up by themselves after `limit_s`."""

    name = "ssh"

    def __init__(self, limit_s: float, reason: str) -> None:
        self.limit_s = limit_s
        self.reason = reason
        self.tried: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def open(self, host: Host) -> Channel:
        self.tried.append(host.name)
        await anyio.sleep(self.limit_s)
        raise NotReached(self.reason, f"no connection within {self.limit_s:.0f} s")


def reached(
    count: int, *, at_a_time: int = 64, limit_s: float = 10.0, budget_s: float = 120.0, reason: str = "unreachable"
) -> tuple[Ledger, list[str]]:
    """What is known of `count` deaf hosts when the phase is over, and who was tried."""
    hosts = tuple(Host(f"h{n + 1}") for n in range(count))
    ledger, launcher = Ledger(hosts, "ssh"), Deaf(limit_s, reason)

    async def main() -> None:
        settings = Settings(hosts, concurrency=at_a_time)
        gate = Gate(settings, launcher, Budget(time.monotonic(), budget_s), ledger)
        async with anyio.create_task_group() as tasks:
            await gate._reach(tasks)

    options: dict[str, Any] = {"clock": MockClock(autojump_threshold=0)}
    anyio.run(main, backend="trio", backend_options=options)
    return ledger, launcher.tried


def of(ledger: Ledger) -> dict[str, tuple[HostState, object]]:
    return {name: (problem.state, problem.data["reason"]) for name, problem in ledger.out.items()}


def test_hosts_behind_dead_ones_that_were_never_tried_are_not_unreachable() -> None:
    """Two at a time, 10 s each, 42 s: eight are dead, two more had 2 s, and the last two none."""
    ledger, tried = reached(12, at_a_time=2)
    found = of(ledger)
    assert [(HostState.UNREACHABLE, "unreachable")] * 8 == [found[name] for name in tried[:8]]
    assert [(HostState.UNDETERMINED, "cut_short")] * 2 == [found[name] for name in tried[8:]]
    others = found.keys() - set(tried)
    assert [(HostState.UNDETERMINED, "not_tried")] * 2 == [found[name] for name in others]
    assert "gave no answer in the 2.0 s that it had" == ledger.out[tried[8]].summary
    assert {"not tried within 42.0 s (2 at a time)"} == {ledger.out[name].summary for name in others}


def test_a_small_budget_condemns_nobody() -> None:
    ledger, _ = reached(3, budget_s=6.0)
    assert {(HostState.UNDETERMINED, "cut_short")} == set(of(ledger).values())


def test_who_was_ended_with_the_steps_of_others_is_not_unreachable() -> None:
    ledger, _ = reached(1, reason="slurm_ended")
    assert {"h1": (HostState.UNDETERMINED, "slurm_ended")} == of(ledger)


class CannotFork:
    """A channel to an agent that can start nothing."""

    member: Member

    async def send(self, line: bytes) -> None:
        command = json.loads(line)
        if command["verb"] == "node":
            text = "cannot be started: [Errno 11] Resource temporarily unavailable"
            self.member._heard(Ended(job=command["job"], process="check", text=text))


def test_a_check_that_cannot_be_started_is_waited_for_no_longer() -> None:
    """One such host cost all others half of the budget."""
    channel = CannotFork()
    member = channel.member = Member(0, Host("h1"), cast(Any, channel))
    ledger = Ledger([member.host], "ssh", members={"h1": member})

    async def main() -> float:
        gate = Gate(Settings((member.host,)), Deaf(0.0, ""), Budget(time.monotonic(), 120.0), ledger)
        began = anyio.current_time()
        with anyio.move_on_after(60.0):
            await gate._check(member, 60.0)
        return anyio.current_time() - began

    options: dict[str, Any] = {"clock": MockClock(autojump_threshold=0)}
    assert anyio.run(main, backend="trio", backend_options=options) < 1
    assert {"h1": (HostState.UNDETERMINED, "node")} == of(ledger)
    assert "Resource temporarily unavailable" in ledger.out["h1"].summary
