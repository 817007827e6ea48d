"""One group of hosts put to the test.

::

    world    the rendezvous host holds a port, all others try it, then torchrun on each
    round    the first host's ranks are forked and open a store; the others' are forked with its port
    measure  the same with the bench's program: `Trial` holds its results as they come
        -> every record, end and loss into a Trial, until all are done, one failed, or nothing comes any more

No wait here has no bound: a group in which nothing moves for `Pace.stall_s` is cancelled, and heard out. Over 300 lines
because a world, a round and a measurement are started differently, and heard out by the same code.
"""

import errno
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import anyio
from msgspec import Struct, field

from probe.cluster.member import Member
from probe.cluster.protocol import AnyMessage, Cancel, Command, Connect, Heard, Listen, Measure, Reached, Round, World
from probe.cluster.trial import HostHeard, Trial, hear

GRACE_S = 1.5
"""After the first failure: gloo's peers notice a dead rank within 0.4 s (measured), and their words are evidence."""
GETTING_ON_S = 4.0
"""Whoever was silent for less before a limit was at work: one case of the bench may take as long."""
LIMIT_S = 1.0
"""Ranks end themselves at the same limit, from their own start: so much may lie between them."""
ENDING_S = 1.0
IMPORT_S = 20.0
"""An import of torch is silent while it lasts, and no word about a link: from a cold network disk it took 20 s, and on
two busy cores 12 where the first import, by which the pace is set, had taken 2."""
LOOK_S = 0.1
"""How often a silent group is looked at again: others may be done meanwhile."""
REACH_S = 3.0
"""To connect to the rendezvous: two lost SYNs and their answer (RFC 6298: retried after 1 s, then 2 s)."""
CANDIDATES = 2
"""How many hosts are tried as the rendezvous before a world is given up."""
NOT_TO_BE_HAD = (os.strerror(errno.EADDRINUSE), os.strerror(errno.EACCES))
"""What an agent says of a port that is somebody else's, or one that not everybody may have."""
TIMES_THE_SLOWEST = 5.0
LATER = 2.0
"""The backend's own limit is later than ours: a hung group is looked at while all of it still hangs, because the first
rank that gives up takes torchrun, and with it the evidence (a stopped rank), away everywhere."""
MI = 1 << 20


class Pace(Struct, frozen=True):
    """How long a group may take."""

    stall_s: float
    """Nothing was heard from any of its ranks."""
    limit_s: float
    """Of all of it: the agents kill."""


class Company(Struct):
    """The groups that are tested at the same time: when most are done, the rest is judged by what these took.

    A pair takes 0.2 s, and a limit that forgives a loaded cluster is 30 times that. `few_s`: never less than that.
    """

    groups: int
    few_s: float
    done_s: list[float] = field(default_factory=list)

    def stall_s(self, usual_s: float) -> float:
        if 2 * len(self.done_s) < self.groups or self.groups < 2:
            return usual_s
        return min(usual_s, max(self.few_s, TIMES_THE_SLOWEST * max(self.done_s)))


class Shape(Struct, frozen=True):
    """What all groups of a run have in common."""

    backend: str
    nproc: int
    ifname: str = ""
    port: int = 0
    pace: Pace = Pace(6.0, 60.0)


class Sizes(Struct, frozen=True):
    verified_bytes: tuple[int, ...]
    rates_bytes: tuple[int, ...]


# Odd multiples of 8 bytes: no size is a multiple of what a library cuts its messages into.
SIZES = {
    ("gloo", "world"): Sizes((4104, MI + 8, 4 * MI + 8), (MI // 4, 4 * MI)),
    ("gloo", "round"): Sizes((4104, MI // 4 + 8), (MI // 4, 2 * MI)),
    # past 1 GiB counts overflow where somebody counts bytes in 32 bits; 1 GiB is where busbw levels off (H100)
    ("nccl", "world"): Sizes((4104, 16 * MI + 8, 1024 * MI + 8 * 1031), (16 * MI, 1024 * MI)),
    ("nccl", "round"): Sizes((4104, 16 * MI + 8), (16 * MI, 256 * MI)),
}


class Stream:
    """The events of one job from several members, closed at the end."""

    def __init__(self, job: int, members: Iterable[Member]) -> None:
        self.job = job
        self.members = list(members)
        self._send, self.receive = anyio.create_memory_object_stream[tuple[Member, AnyMessage | None]](math.inf)

    def __enter__(self) -> Self:
        for member in self.members:
            member.listen(self.job, self._send)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.forget(self.job)
        self._send.close()
        self.receive.close()

    async def next(self, within_s: float) -> "tuple[Member, AnyMessage | None] | None":
        """The next event; None where none came in time."""
        with anyio.move_on_after(within_s):
            return await self.receive.receive()
        return None


class Tester:
    """Runs the groups of one round."""

    def __init__(self, shape: Shape, company: Company, jobs: Iterator[int], seed: int) -> None:
        """`jobs`: numbers that no earlier group had, so that what comes late from one is not taken for another's."""
        self._shape = shape
        self._company = company
        self._jobs = jobs
        self._seed = seed

    def _common(self) -> dict[str, object]:
        shape = self._shape
        self._seed += 1000
        return {
            "backend": shape.backend,
            "ifname": shape.ifname,
            "nproc": shape.nproc,
            "seed": self._seed % (1 << 31),
            "timeout_s": LATER * shape.pace.stall_s,
            "limit_s": shape.pace.limit_s,
        }

    def _task(self, kind: str) -> dict[str, object]:
        sizes = SIZES[self._shape.backend, kind]
        return {**self._common(), "sizes_bytes": sizes.verified_bytes, "rates_bytes": sizes.rates_bytes}

    # -- a world of forked ranks ---------------------------------------------------------------------------------------

    async def round(self, members: Sequence[Member]) -> Trial:
        """Whether they work together; alone, a host talks to itself over loopback."""
        trial = Trial(members, self._shape.nproc, processes=self._shape.nproc)
        await self._forked(trial, Round, self._task("round"))
        return trial

    async def measure(self, trial: Trial, share_s: float) -> None:
        """The bench's collectives over all ranks of `trial`, which may be read at any moment."""
        await self._forked(trial, Measure, {**self._common(), "share_s": share_s})

    async def _forked(self, trial: Trial, command: type[Round | Measure], task: Mapping[str, object]) -> None:
        members, each = trial.members, self._shape.nproc
        address = members[0].address if len(members) > 1 else "127.0.0.1"
        with Stream(next(self._jobs), members) as stream:
            alike = {**task, "job": stream.job, "ranks": each * len(members), "address": address}

            def ranks(at: int, first_local: int, locals_: int, port: int) -> tuple[Member, Command]:
                return members[at], command(
                    **alike,  # type: ignore[arg-type]
                    first_rank=each * at,
                    first_local=first_local,
                    locals=locals_,
                    port=port,
                )

            await _all([ranks(0, 0, 1, self._shape.port if len(members) > 1 else 0)])
            port = await self._store(trial, stream)
            if port:
                await _all([ranks(0, 1, each - 1, port)] if each > 1 else [])
                await _all(ranks(at, 0, each, port) for at in range(1, len(members)))
                await self._follow(trial, stream)
            else:
                await _finish(trial, stream)

    async def _store(self, trial: Trial, stream: Stream) -> int:
        """The port of the round's store; 0 where none came: the others are never started, and not blamed."""
        while not trial.failed:
            event = await stream.next(self._shape.pace.stall_s)
            if event is None:
                trial.stalled = True
                break
            hear(trial, *event)
            if isinstance(event[1], Heard) and event[1].record.key == "store":
                return int(event[1].record.data["port"])
        for member in trial.members[1:]:
            trial.heard.setdefault(member.index, HostHeard(spoke=True))
        return 0

    # -- a world ------------------------------------------------------------------------------------------------------

    async def world(self, members: Sequence[Member], avoid: Iterable[Member] = ()) -> Trial:
        """A torchrun world of all `members`, around a rendezvous host that they can reach."""
        trial = Trial(members, self._shape.nproc, processes=1)
        avoided = set(avoid)
        candidates = [member for member in members if member not in avoided] or list(members)
        refused: dict[str, str] = {}
        for tried, host in enumerate(candidates[:CANDIDATES], start=1):
            with Stream(next(self._jobs), members) as stream:
                port, words, reached = await self._rendezvous(stream, host, members)
                if not port and words[0].endswith(NOT_TO_BE_HAD):
                    refused[host.name] = words[0].rpartition(": ")[2]
                if port and reached == len(members) - 1:
                    trial.rendezvous = host.name
                    await self._torchrun(trial, stream, host, port)
                    return trial
                await _all([(host, Cancel(job=stream.job))])  # its port is free again: the next group may want it
            trial.unreached += words
            trial.refused = refused if len(refused) == tried else {}
            if port and reached * 2 >= len(members) - 1:
                break  # most of the others reach it: who does not is the question, and no other host answers it
            trial.no_rendezvous.append(host.name)
        for member in members:
            trial.heard.setdefault(member.index, HostHeard(spoke=True))
        return trial

    async def _rendezvous(self, stream: Stream, host: Member, members: Sequence[Member]) -> tuple[int, list[str], int]:
        """Its port (0: none), who could not reach it and why, and how many could."""
        await host.send(Listen(job=stream.job, address=host.address, port=self._shape.port))
        held = (await _reaches(stream, [host], REACH_S)).get(host.index)
        if held is None or not held.port:
            return 0, [f"{host.name} holds no port: {held.text if held else 'no answer'}"], 0
        others = [member for member in members if member is not host]
        connect = Connect(job=stream.job, address=host.address, port=held.port, timeout_s=REACH_S)
        await _all((member, connect) for member in others)
        answers = await _reaches(stream, others, REACH_S + 1.0)
        failed = [
            f"{member.name} cannot reach {host.name} ({host.address} port {held.port}): "
            f"{found.text if (found := answers.get(member.index)) else 'no answer'}"
            for member in others
            if not (found := answers.get(member.index)) or not found.port
        ]
        return held.port, failed, len(others) - len(failed)

    async def _torchrun(self, trial: Trial, stream: Stream, host: Member, port: int) -> None:
        task = {
            **self._task("world"),
            "job": stream.job,
            "run_id": secrets.token_hex(8),
            "nodes": len(trial.members),
            "address": host.address,
            "port": port,
            "join_timeout_s": max(5, int(self._shape.pace.stall_s)),
        }
        # the rendezvous host first: the others' first connect then finds somebody, instead of backing off
        for is_host in (True, False):
            await _all(
                (member, World(**task, is_host=is_host, local_address=member.address))  # type: ignore[arg-type]
                for member in trial.members
                if (member is host) is is_host
            )
        await self._follow(trial, stream)

    # -- hearing a group out ------------------------------------------------------------------------------------------

    async def _follow(self, trial: Trial, stream: Stream) -> None:
        """Until all are done or gone, or one has failed and the others had `GRACE_S`, or nothing comes any more."""
        began = heard_at = spoke_at = time.monotonic()
        over_at = 0.0
        with anyio.move_on_after(self._shape.pace.limit_s):
            while not trial.done and len(trial.over) < len(trial.members):
                silent_s = time.monotonic() - heard_at
                stall_s = self._company.stall_s(self._shape.pace.stall_s)
                if trial.importing:
                    stall_s = max(stall_s, IMPORT_S)
                if silent_s > (GRACE_S if trial.failed else stall_s):
                    break
                event = await stream.next(LOOK_S)
                if event is not None and hear(trial, *event):
                    heard_at = time.monotonic()
                    if trial.failed:
                        over_at = over_at or heard_at
                    elif isinstance(event[1], Heard):
                        spoke_at = heard_at
        over_at = over_at or time.monotonic()
        trial.out_of_time = not trial.done and over_at - began > self._shape.pace.limit_s - LIMIT_S
        trial.getting_on = over_at - spoke_at < GETTING_ON_S
        if trial.done:
            self._company.done_s.append(time.monotonic() - began)
        trial.stalled = not (trial.done or trial.failed)
        await _finish(trial, stream)


async def _finish(trial: Trial, stream: Stream) -> None:
    """Let ranks that are done end by themselves, cancel the rest, and hear how they ended."""
    for cancel in (False, True):
        if cancel or not trial.done:
            await _all((member, Cancel(job=stream.job)) for member in trial.members)
        with anyio.move_on_after(ENDING_S):
            while len(trial.over) < len(trial.members):
                hear(trial, *await stream.receive.receive())
        if len(trial.over) == len(trial.members):
            return


async def _all(commands: "Iterable[tuple[Member, Command]]") -> None:
    for member, command in commands:
        if not member.gone.is_set():
            await member.send(command)


async def _reaches(stream: Stream, members: Sequence[Member], within_s: float) -> dict[int, Reached]:
    """What each of `members` said of the port it was to hold or reach; who said nothing is not in it."""
    found: dict[int, Reached] = {}
    with anyio.move_on_after(within_s):
        while len(found) < len(members):
            member, message = await stream.receive.receive()
            if isinstance(message, Reached):
                found[member.index] = message
            elif message is None:
                found[member.index] = Reached(
                    job=stream.job, port=0, text=f"its agent was lost: {member.lost}", elapsed_s=0
                )
    return found
