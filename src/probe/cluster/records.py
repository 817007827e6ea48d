"""What ranks say of a world or a round, as types: a record by which a host is judged holds what it is judged by."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from probe.model import Record

Count = Annotated[int, Meta(ge=0, le=1 << 50)]
RankNumber = Annotated[int, Meta(ge=0, lt=1 << 20)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Rate = Annotated[float, Meta(ge=0)]


class OfRank(Struct, frozen=True):
    """The data of any record: where a rank says it, which."""

    rank: RankNumber = 0


class StoreOpened(OfRank, frozen=True, kw_only=True):
    port: Port


class WrongWords(Struct, frozen=True):
    kind: str
    words: Count
    owners: tuple[RankNumber, ...]


class Cases(OfRank, frozen=True, kw_only=True):
    bytes: Count
    verified: Count
    wrong: tuple[WrongWords, ...]


class Gathered(OfRank, frozen=True, kw_only=True):
    wrong: tuple[RankNumber, ...]


class Rates(OfRank, frozen=True, kw_only=True):
    bytes: Count
    algbw_gbps: Rate
    busbw_gbps: Rate


DATA: Mapping[str, type[OfRank]] = {"store": StoreOpened, "cases": Cases, "gathered": Gathered, "rate": Rates}
"""What must be in a record that a world or round is judged by, by its key; whatever else is there does no harm."""


def check(record: Record) -> None:
    """Raise `msgspec.ValidationError` where something is missing, or is not what it must be."""
    msgspec.convert(record.data, DATA.get(record.key, OfRank))
