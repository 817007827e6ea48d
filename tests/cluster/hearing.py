"""Members without agents, and records as ranks say them, for the pure parts of the gate."""

from typing import Any, cast

from probe.cluster.hosts import Host
from probe.cluster.member import Member
from probe.cluster.protocol import AnyMessage, Ended, Facts, Heard
from probe.cluster.trial import Trial, hear
from probe.model import Record


def facts(**changed: Any) -> Facts:
    known: dict[str, Any] = {
        "hostname": "h",
        "machine": "m",
        "kernel": "6.1",
        "python": "3.11.7",
        "cpu": "Some CPU",
        "cores": 8,
        "gpus": 0,
        "environment": {},
        "interfaces": (),
        "infiniband": (),
        "address": "10.0.0.1",
        "interface": "eth0",
        "mtu": 1500,
    }
    return Facts(**{**known, **changed})


def member(index: int, **changed: Any) -> Member:
    made = Member(index, Host(f"h{index + 1}"), cast(Any, None))
    made.facts = facts(address=f"10.0.0.{index + 1}", machine=f"m{index}", **changed)
    return made


def record(key: str, text: str = "", job: int = 1, process: str = "0", code: int | None = None, **data: Any) -> Heard:
    return Heard(job=job, process=process, record=Record(key, text=text, code=code, data=data))


def healthy(rank: int, gbps: float = 1.0) -> list[AnyMessage]:
    """What a rank says when all is well."""
    return [
        record("step", "store", rank=rank),
        record("cases", rank=rank, bytes=4104, verified=6, wrong=[]),
        record("gathered", rank=rank, count=0, wrong=[]),
        record("rate", rank=rank, bytes=4096, algbw_gbps=gbps, busbw_gbps=gbps),
        record("done", rank=rank),
        Ended(job=1, process="0", status=0),
    ]


def trial(said: dict[int, list[AnyMessage | None]], **options: Any) -> Trial:
    """A group of one rank a host, which said that."""
    members = [member(index) for index in said]
    made = Trial(members, nproc=1, processes=1, **options)
    for one in members:
        for message in said[one.index]:
            hear(made, one, message)
    return made
