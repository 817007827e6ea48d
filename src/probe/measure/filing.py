"""What the processes of one program said -> its results: a case by all its passes, by all ranks of one group. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from msgspec import Struct

from probe.measure.model import Result
from probe.measure.summary import joined, summarise
from probe.model import Record, Scalar

NOWHERE: Mapping[str, str] = {}


class Filed(Struct):
    """What was measured, and what was said beside it."""

    results: list[Result]
    left_out: list[str]
    """Cases, each with its reason."""
    wrong: list[str]
    """What computed wrongly, in words."""
    devices: list[Record]


def file(program: str, said: Iterable[Sequence[Record]], places: Mapping[str, str] = NOWHERE) -> Filed:
    """The results of processes that measured the same cases; `said`: the records of each.

    `places`: by target, what goes before words about it.
    """
    filed = Filed([], [], [], [])
    merged: dict[tuple[str, str], list[list[Record]]] = {}
    for records in said:
        mine: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            if record.key == "result":
                mine.setdefault((record.data["case"], record.target), []).append(record)
            elif record.key == "left":
                filed.left_out.append(f"{places.get(record.target, '')}{record.data['case']}: {record.text}")
            elif record.key == "device":
                filed.devices.append(record)
        for place, passes in mine.items():
            merged.setdefault(place, []).append(passes)
    for (case, target), processes in merged.items():
        filed.wrong += [places.get(target, "") + words for words in _file_case(filed, program, case, target, processes)]
    return filed


def _file_case(filed: Filed, program: str, case: str, target: str, processes: Sequence[Sequence[Record]]) -> list[str]:
    """File it, if it is one; what was wrong with it."""
    records = list(chain.from_iterable(processes))
    first = records[0].data
    if len(processes) < first["data"].get("ranks", 1):
        return []  # a rank had not said it when the run ended
    passes = joined([record.data["seconds"] for record in said] for said in processes)
    texts = [[record.text for record in said if record.text] for said in processes]
    data = {**first["data"]}
    if factor := data.pop("bus_factor", None):
        data["algbw_gbps"] = summarise(passes, first["amount"] / factor, "B").median
        data["time_s"] = summarise(passes, 1.0, "s").median
    verified = all(record.data["verified"] for record in records)
    made = result(program, case, target, passes, first["amount"], first["unit"], verified=verified, data=data)
    filed.results.append(made)
    return [f"{case}: {text}" for text, *_ in filter(None, texts)]


def result(
    program: str,
    case: str,
    target: str,
    passes: Sequence[Sequence[float]],
    amount: float,
    unit: str,
    *,
    verified: bool | None = None,
    data: Mapping[str, Scalar] | None = None,
) -> Result:
    """One figure, of seconds per call in each pass and how much of `unit` a call does; its limit others must say."""
    made = summarise(passes, amount, unit)
    return Result(
        program,
        case,
        target,
        made.unit,
        made.median,
        made.p5,
        made.p95,
        made.n,
        limit=None,
        limit_source="",
        verified=verified,
        blocks=made.blocks,
        passes=made.passes,
        data=data or {},
    )
