"""The channel to an agent that is a child of this process."""

from typing import Any, cast

import anyio
import pytest

from probe.cluster import local
from probe.cluster.launch import FLOOD, Closed


def test_an_agent_that_floods_is_over_and_what_it_said_before_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much comes after that, and though it ends later."""
    monkeypatch.setattr(local, "MOST_WAITING", 2)

    async def main() -> tuple[list[bytes], str]:
        channel = local.LocalChannel(cast(Any, None), -1)
        for line in (b"1", b"2", b"3", b"4"):
            channel.heard(line)
        channel.over("the agent ended")
        heard = [await channel.receive() for _ in range(2)]
        with pytest.raises(Closed) as found:
            await channel.receive()
        channel._received.close()
        return heard, str(found.value)

    assert ([b"1", b"2"], FLOOD) == anyio.run(main)
