"""What an agent says of itself when it is greeted."""

import json
from typing import Any, cast

import anyio
import msgspec
import pytest

from probe import __version__
from probe.cluster.hosts import Host
from probe.cluster.launch import NotReached
from probe.cluster.member import Member
from probe.cluster.protocol import PROTOCOL
from tests.cluster.hearing import facts


class Greeting:
    """A channel to an agent that says where the other hosts find it."""

    def __init__(self, address: str) -> None:
        ready = {"say": "ready", "version": __version__, "protocol": PROTOCOL, "name": "h1", "pid": 1}
        hello = {"say": "hello", "facts": msgspec.to_builtins(facts(address=address))}
        self.lines = [json.dumps(line).encode() for line in (ready, hello)]

    async def send(self, line: bytes) -> None: ...

    async def receive(self) -> bytes:
        return self.lines.pop(0)


def greeted(address: str) -> Member:
    member = Member(0, Host("h1"), cast(Any, Greeting(address)))
    anyio.run(member.greet, 60.0, "")
    return member


@pytest.mark.parametrize("address", ["", "10.0.0.1", "fd00::1"])
def test_an_address_is_taken_as_it_is(address: str) -> None:
    assert address == greeted(address).address


@pytest.mark.parametrize("address", ["example.org", "10.0.0", "10.0.0.1 ", "-x"])
def test_what_is_no_address_is_not_handed_on_to_other_hosts(address: str) -> None:
    """They would refuse the command, and be lost in the place of who said it."""
    with pytest.raises(NotReached, match="its address is") as found:
        greeted(address)
    assert "agent_failed" == found.value.reason
