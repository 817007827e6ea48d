"""What a bench across hosts knows of them, as values of its report. Pure."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from probe.cluster.ledger import Ledger
from probe.cluster.member import Member
from probe.cluster.muster import links_gbps
from probe.cluster.trial import Trial
from probe.measure.model import Host, Provenance
from probe.model import Record

SOCKETS = {"NCCL_IB_DISABLE": "1", "NCCL_NET": "Socket"}
"""Variables with which NCCL leaves InfiniBand and RoCE alone."""
Positive = Annotated[float, Meta(gt=0.0, le=1e15)]
Word = Annotated[str, Meta(pattern=r"^[a-z_]{1,32}$")]


class Of(Struct, frozen=True):
    """What a case was."""

    op: Word
    size_bytes: Annotated[int, Meta(ge=0, le=1 << 40)]
    ranks: Annotated[int, Meta(ge=1, le=1 << 20)]
    bus_factor: Positive


class Said(Struct, frozen=True):
    """One case as a rank says it: what comes from another host is believed as far as it is this."""

    case: Annotated[str, Meta(pattern=r"^[a-z_]{1,32} \d{1,6} [KMG]?i?B$")]
    seconds: Annotated[list[Positive], Meta(min_length=1, max_length=1000)]
    amount: Positive
    unit: Literal["B"]
    verified: bool
    data: Of


def said(heard: Trial | None) -> tuple[list[list[Record]], list[str]]:
    """The records of each rank that are what they should be, and complaints of those that are not."""
    found: list[list[Record]] = []
    complaints: dict[str, None] = {}
    for member in heard.members if heard else ():
        ranks = heard.heard[member.index].ranks if heard and member.index in heard.heard else {}
        for rank in ranks.values():
            found.append([record for record in rank.measured if _right(record)])
            if len(found[-1]) < len(rank.measured):
                complaints[f"{member.name} said what is no result"] = None
    return found, list(complaints)


def _right(record: Record) -> bool:
    if record.key != "result":
        return record.key == "device" or isinstance(record.data.get("case"), str)
    try:
        msgspec.convert(record.data, Said)
    except msgspec.ValidationError:
        return False
    return True


def provenance(ledger: Ledger, heard: Trial | None) -> Provenance:
    """On what; `heard`: what the ranks have said of their devices, if they have begun."""
    hosts = tuple(_host(member, ledger, heard) for member in ledger.taking_part or ledger.members.values())
    first = hosts[0] if hosts else Host("", 0)
    cuda = ledger.backend == "nccl"
    member = next(iter(ledger.members.values()), None)
    return Provenance(
        device="cuda" if cuda else "cpu",
        machine=machine(hosts, cuda=cuda),
        cpu=first.cpu,
        cores=first.cores,
        kernel=first.kernel,
        python=member.facts.python if member and member.facts else "",
        torch=first.torch,
        torch_cuda=first.torch_cuda,
        driver=first.driver,
        driver_cuda="",
        workers=0 if cuda else sum(host.ranks for host in hosts),
        launcher=ledger.launcher,
        backend=ledger.backend,
        hosts=hosts,
    )


def machine(hosts: tuple[Host, ...], *, cuda: bool) -> str:
    """``2 hosts x 8 x NVIDIA H100 80GB HBM3``, ``3 hosts x 1 process, Some CPU, 8 cores``."""
    count = f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}"
    kinds = list(dict.fromkeys(_kind(host, cuda=cuda) for host in hosts))
    return f"{count} x {' or '.join(kinds)}" if kinds else count


def _kind(host: Host, *, cuda: bool) -> str:
    if not host.ranks:  # it ended before that was known
        return host.cpu
    if cuda:
        return f"{host.ranks} x {host.gpu or 'GPU'}"
    return f"{host.ranks} process{'es' if host.ranks != 1 else ''} on {host.cpu}, {host.cores} cores"


def _host(member: Member, ledger: Ledger, heard: Trial | None) -> Host:
    facts, torch, node = member.facts, member.torch, ledger.nodes.get(member.name)
    device = _device(member, heard)
    ports = [port for port in facts.infiniband if port.state == "ACTIVE"] if facts else []
    plain = bool(facts and any(facts.environment.get(name) == word for name, word in SOCKETS.items()))
    memory = device.get("memory_bytes")
    return Host(
        host=member.name,
        ranks=ledger.nproc,
        gpu=str(device.get("name", "")) or (node.gpu_name if node and ledger.backend == "nccl" else ""),
        gpu_memory_bytes=memory if isinstance(memory, int) else None,
        cpu=facts.cpu if facts else "",
        cores=facts.cores if facts else 0,
        kernel=facts.kernel if facts else "",
        driver=node.driver if node else "",
        torch=torch.version if torch else "",
        torch_cuda=torch.cuda if torch else "",
        nccl=str(member.importer.get("nccl", "")),
        interface=facts.interface if facts else "",
        links_gbps=None if plain else links_gbps(member, ledger.nproc) or None,
        links_add=bool(ports) and all(port.layer == "InfiniBand" for port in ports),
    )


def _device(member: Member, heard: Trial | None) -> dict[str, object]:
    """What torch says of the first GPU there."""
    host = heard.heard.get(member.index) if heard else None
    records = [record for rank in (host.ranks.values() if host else ()) for record in rank.measured]
    return next((record.data for record in records if record.key == "device"), {})
