"""A TCP service of the user's own, ``[[tcp]]``: it accepts a connection and, if told to, says what it should."""

from collections.abc import AsyncIterator

import anyio
from anyio.abc import SocketStream

from probe.checks.reaching import address, found, resolve, shown, why
from probe.context import Context
from probe.model import Finding, Job, failed, passed
from probe.options import A_HOST, A_PORT, host, option, port, slashed, text
from probe.registry import TARGETS, check

MOST_BYTES = 65536
REST_S = 0.05


@check(
    "service.tcp",
    profiles="RS",
    into=TARGETS,
    options={
        "host": option(host, A_HOST, "where it listens", required=True),
        "port": option(port, A_PORT, "where it listens", required=True),
        "send": option(text, "text", "what is sent once connected; never shown", "", secret=True),
        "expect": option(
            slashed, "text, or a regular expression between slashes", "what it must say in its first 64 KiB", ""
        ),
    },
)
async def tcp(context: Context, job: Job) -> Finding:
    """Does it accept a connection, and say what it should?"""
    name, number = job.options["host"], job.options["port"]
    where = address(name, number)
    try:
        await resolve(context, job, name, number)
        context.step(job, f"connecting to {where}")
        async with await anyio.connect_tcp(name, number) as stream:
            return await _talked(context, job, stream, where)
    except (OSError, anyio.BrokenResourceError) as error:
        reason, words = why(error)
        return failed(f"{where}: {words}", reason=reason, address=where)


async def _talked(context: Context, job: Job, stream: SocketStream, where: str) -> Finding:
    sent, expected = job.options["send"], job.options["expect"]
    if sent:
        context.step(job, f"sending to {where}")
        await stream.send(sent.encode())
    if not expected:
        return passed(f"{where} accepts connections", address=where)
    context.step(job, f"waiting for {shown(expected)} from {where}")
    heard, said = b"", ""
    async for heard in _growing(stream):
        said = heard.decode("utf-8", "replace")
        if says(said, expected):
            return passed(f"{where} says {shown(expected)}", address=where)
    if not heard:
        words = f"{where} closed the connection without a word, expected {shown(expected)}"
        return failed(words, reason="closed", address=where)
    ended = "and closed the connection" if len(heard) < MOST_BYTES else "in its first 64 KiB"
    words = f'{where} said "{shown(said[:4096], (sent, sent.strip()))}" {ended}, expected {shown(expected)}'
    return failed(words, reason="content", address=where)


async def _growing(stream: SocketStream) -> AsyncIterator[bytes]:
    """All that was heard so far, up to `MOST_BYTES`, each time that it is worth looking at.

    That is when it has doubled, or after a rest: of one byte at a time all would be searched for each.
    """
    heard, ended = b"", False
    while not ended and len(heard) < MOST_BYTES:
        worth = min(2 * len(heard), MOST_BYTES)
        try:
            heard += await stream.receive(MOST_BYTES - len(heard))
            with anyio.move_on_after(REST_S):
                while len(heard) < worth:
                    heard += await stream.receive(MOST_BYTES - len(heard))
        except anyio.EndOfStream:
            ended = True
        if heard:
            yield heard


def says(said: str, expected: str) -> bool:
    """Whether it holds the text, or something that fits the ``/regular expression/``."""
    if len(expected) > 2 and expected[0] == expected[-1] == "/":
        return found(expected[1:-1], said)
    return expected in said
