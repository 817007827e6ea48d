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
from probe.cluster.protocol import Reached
from probe.cluster.trial import Trial
from probe.cluster.worlds import Company, Shape
from tests.cluster.hearing import facts

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
