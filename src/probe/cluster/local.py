"""Simulated hosts, and ``localhost`` itself: agents that are children of this process, no sshd needed.

An agent here dies with us by its parent-death signal as well; what it started is tied to it, and dies too.
"""

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import anyio

from probe.cluster.hosts import Host
from probe.cluster.launch import BOOT, FLOOD, Channel, Closed, NotReached
from probe.output import write
from probe.worker.ending import how
from probe.worker.parent import Children, End, Line, Process

SEND_S = 2.0
"""An agent reads its input at once; whoever leaves a pipe full that long is no agent any more."""
MOST_WAITING = 100_000


class LocalChannel:
    def __init__(self, process: Process, stdin: int) -> None:
        self._process = process
        self._stdin = stdin
        self._lines, self._received = anyio.create_memory_object_stream[bytes](MOST_WAITING)
        self.end = "its input was closed"
        self._over = False

    def heard(self, line: bytes) -> None:
        """Take in a line; an agent that says more than anybody can hear is no agent any more."""
        try:
            self._lines.send_nowait(line)
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            self.over(FLOOD)

    def over(self, why: str) -> None:
        """Nothing more will come; the first reason stands."""
        if not self._over:
            self._over = True
            self.end = why
            self._lines.close()

    async def send(self, line: bytes) -> None:
        if self._stdin < 0 or not write(self._stdin, line, time.monotonic() + SEND_S):
            raise Closed(self.end)

    async def receive(self) -> bytes:
        try:
            return await self._received.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise Closed(self.end) from None

    async def close(self) -> None:
        if self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1


class LocalLauncher:
    name = "local"

    def __init__(self, children: Children, environments: Mapping[str, Mapping[str, str]]) -> None:
        """`environments`: by host, what is laid over the agent's own environment."""
        self._children = children
        self._environments = environments
        self._channels: dict[Process, LocalChannel] = {}
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._pump)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def open(self, host: Host) -> Channel:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        argv = [sys.executable, "-P", "-c", BOOT, host.name, host.address]
        try:
            process = self._children.start_foreign(
                argv, worker="agent", target=host.name, environment=self._environments.get(host.name), stdin=reading
            )
        except OSError as error:
            os.close(writing)
            raise NotReached("agent_not_started", f"the agent cannot be started here: {error}") from None
        finally:
            os.close(reading)
        channel = self._channels[process] = LocalChannel(process, writing)
        return channel

    async def _pump(self) -> None:
        while True:
            await anyio.wait_readable(self._children.fd)
            for event in self._children.poll():
                channel = self._channels.get(event.process)
                if channel is None:
                    continue
                if isinstance(event, Line):
                    channel.heard(event.line)
                elif isinstance(event, End):
                    tail = event.process.tail.decode("utf-8", "replace").strip().splitlines()
                    channel.over(f"the agent {how(event.exit)}{': ' + tail[-1] if tail else ''}")
