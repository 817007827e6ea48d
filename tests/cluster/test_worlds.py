"""Around which host a world is formed, and what it means that none can be it: agents that only say what they reach."""

import json
from itertools import count
from typing import Any, cast

import anyio
import pytest
from trio.testing import MockClock

from probe.cluster import worlds
from probe.cluster.hosts import Host
from probe.cluster.member import Member
from probe.cluster.protocol import AnyMessage, Ended, Reached
from probe.cluster.trial import Trial
from probe.cluster.worlds import Company, Pace, Shape
from tests.cluster.hearing import facts, record

TAKEN = "Address already in use"


class Saying:
    """A channel to a host on which the port is `text`, or free, and that reaches others or does not."""

    def __init__(self, text: str, *, reaches: bool) -> None:
        self.answers = {"listen": text, "connect": "" if reaches else "Connection timed out"}
        self.member: Member | None = None
        self.held: set[int] = set()

    async def send(self, line: bytes) -> None:
        command = json.loads(line)
        if command["verb"] == "listen" and not self.answers["listen"]:
            self.held.add(command["job"])
        if command["verb"] == "cancel":
            self.held.discard(command["job"])
        if self.member is not None and (text := self.answers.get(command["verb"])) is not None:
            port = 0 if text else command["port"]
            self.member._heard(Reached(job=command["job"], port=port, text=text, elapsed_s=0.0))


def member(index: int, text: str = "", *, reaches: bool = True) -> Member:
    channel = Saying(text, reaches=reaches)
    made = channel.member = Member(index, Host(f"h{index + 1}"), cast(Any, channel))
    made.facts = facts(address=f"10.0.0.{index + 1}")
    return made


def world(*members: Member) -> Trial:
    async def main() -> Trial:
        return await worlds.Tester(Shape("gloo", 1, port=29500), Company(1, 2.0), count(1), seed=1).world(members)

    options: dict[str, Any] = {"clock": MockClock(autojump_threshold=0)}
    return anyio.run(main, backend="trio", backend_options=options)


def test_a_port_that_no_candidate_can_have_is_known_as_such() -> None:
    heard = world(member(0, TAKEN), member(1, "Permission denied"), member(2))
    assert {"h1": TAKEN, "h2": "Permission denied"} == heard.refused
    assert "" == heard.rendezvous


@pytest.mark.parametrize("text", ["", "Cannot assign requested address"])
def test_one_that_others_could_not_reach_had_its_port(text: str) -> None:
    """Then who cannot reach it is the question, or what is wrong with its address."""
    heard = world(member(0, TAKEN), member(1, text), member(2), member(3, reaches=False))
    assert {} == heard.refused
    assert "" == heard.rendezvous


def test_a_port_that_was_held_for_no_world_is_given_back() -> None:
    """The next group may want the same one, and must not find it taken by ourselves."""
    members = [member(0), member(1), *(member(index, reaches=False) for index in (2, 3, 4))]
    assert ["h1", "h2"] == world(*members).no_rendezvous
    assert [set()] * 5 == [cast(Saying, one.channel).held for one in members]


class Script:
    """A stream of events at their times, in seconds from the start of the group; nobody may wait for more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *events: tuple[float, int, AnyMessage]) -> None:
        self.now = 100.0
        self._left = [(self.now + at, index, message) for at, index, message in events]
        self.members = [member(0), member(1)]
        monkeypatch.setattr("probe.cluster.worlds.time.monotonic", lambda: self.now)

    async def next(self, _: float) -> tuple[Member, AnyMessage]:
        assert self._left, "waited for what can never come"
        self.now, index, message = self._left.pop(0)
        return self.members[index], message

    def followed(self, limit_s: float) -> Trial:
        async def main() -> Trial:
            trial = Trial(self.members, 1, processes=1)
            shape = Shape("gloo", 1, pace=Pace(stall_s=60.0, limit_s=limit_s))
            await worlds.Tester(shape, Company(1, 60.0), count(1), seed=1)._follow(trial, cast(Any, self))
            return trial

        return anyio.run(main)


@pytest.fixture
def _no_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    async def finish(trial: Trial, stream: Any) -> None: ...

    monkeypatch.setattr(worlds, "_finish", finish)


STEP = record("step", "all_reduce 16 MiB", rank=0)
FAILED = record("failed", "Connection closed by peer", rank=0, kind="RuntimeError")
CRASHED = Ended(job=1, process="0", status=1, tail="RuntimeError: x")
AT_LIMIT = Ended(job=1, process="0", status=1, tail="Timeout (0:00:20)!\n")


@pytest.mark.usefixtures("_no_finish")
def test_a_group_whose_processes_have_all_ended_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Script(monkeypatch, (1.0, 0, STEP), (2.0, 0, CRASHED), (2.1, 1, CRASHED)).followed(20.0)
    assert (True, False, False) == (heard.failed, heard.done, heard.out_of_time)


@pytest.mark.usefixtures("_no_finish")
@pytest.mark.parametrize(
    ("events", "out_of_time", "getting_on"),
    [
        ([(19.0, 0, STEP), (19.6, 0, AT_LIMIT), (19.7, 1, AT_LIMIT)], True, True),
        ([(19.0, 0, STEP), (19.6, 0, FAILED), (19.7, 0, CRASHED), (19.7, 1, AT_LIMIT)], True, True),
        ([(14.0, 0, STEP), (19.6, 0, AT_LIMIT), (19.7, 1, AT_LIMIT)], True, False),
        ([(17.0, 0, STEP), (18.2, 0, FAILED), (18.3, 0, CRASHED), (19.6, 1, AT_LIMIT)], False, True),
    ],
    ids=["at work", "missed the others", "silent", "failed before"],
)
def test_who_is_ended_by_our_own_limit_is_known(
    monkeypatch: pytest.MonkeyPatch, events: list[tuple[float, int, AnyMessage]], out_of_time: bool, getting_on: bool
) -> None:
    heard = Script(monkeypatch, *events).followed(20.0)
    assert (out_of_time, getting_on) == (heard.out_of_time, heard.getting_on)
