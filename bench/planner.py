"""The gate's planner on simulated clusters: rounds, exactness, and its own time with 1,024 hosts.

Writes ``bench/results/planner.md``: which follows from the seeds alone, so that it changes only when the planner does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from bench.measure import Bench, Figure, Value, output

PROGRAM = Path(__file__).with_name("simulations.py")
TABLE = Path(__file__).with_name("results") / "planner.md"
PLANNING_BAR_S = 1.0
"""All rounds of one localisation with 1,024 hosts: a round itself takes a second."""


class Bar(NamedTuple):
    """What an earlier simulation of the same plan on paper reached: to be no worse than."""

    rounds: float | None = None
    exact: float | None = 1.0
    innocents: float | None = 0.0
    named_after: float | None = None


BARS: Mapping[tuple[str, int], Bar] = {
    ("healthy", 64): Bar(1),
    **{("1 bad host", hosts): Bar(4) for hosts in (4, 8, 16, 32, 64)},
    ("2 bad hosts", 16): Bar(5.9),
    ("4 bad hosts", 64): Bar(7.3),
    ("5 bad hosts", 256): Bar(7.4),
    ("10 bad hosts", 1024): Bar(8.1),
    ("100 bad hosts", 1024): Bar(11.1),
    ("30 bad hosts", 64): Bar(11.7),
    ("3 bad hosts, 5 % false alarms", 256): Bar(None, 0.93, 0.07),
    ("skew, 5 of 16", 16): Bar(8.1),
    ("skew, 16 of 64", 64): Bar(11.2),
    ("a leaf of 16 without uplinks", 128): Bar(6),
    ("1 bad link of the ring", 64): Bar(None, named_after=3),  # without the round that confirms
    ("2 bad links, 2 bad hosts", 64): Bar(None, None, None),  # of its own: LINKS, HOSTS
    ("2 hosts that show it in 70 %", 64): Bar(None, 0.08, None),
    ("the same, repeat 3", 64): Bar(None, 0.90, None),
    ("1 bad host, fast", 64): Bar(4),
}
LINKS, HOSTS = 393 / 397, 0.99
MISSED = 1.5


def measure(bench: Bench) -> Figure:
    """Every scenario with its bars, and the table."""
    program = [bench.python, "-P", str(PROGRAM)]
    rows: list[dict[str, Any]] = [json.loads(output([*program, str(at)])) for at in range(int(output(program)))]
    TABLE.write_text(table(rows))
    planning_s = {f"{row['name']}, N={row['hosts']}": row["planning_s"] for row in rows if row["hosts"] == 1024}
    values = [value for row in rows for value in judged(row)]
    values += [Value(f"planning: {name}", median(each), "s", PLANNING_BAR_S) for name, each in planning_s.items()]
    notes = (f"the table: {TABLE.name}; simulated, so only the times are this machine's",)
    return Figure("planner", "the gate's planner on simulated clusters", tuple(values), planning_s, notes)


def judged(row: Mapping[str, Any]) -> list[Value]:
    """The numbers of one scenario that have a bar."""
    name, bar = f"{row['name']}, N={row['hosts']}", BARS.get((row["name"], row["hosts"]), Bar(None, None, None))
    values = [
        Value(f"{name}: rounds", row["rounds"], "r", bar.rounds),
        Value(f"{name}: named after", row["named_after"], "r", bar.named_after),
        Value(f"{name}: exact", row["exact"], "x", bar.exact, at_least=True),
        Value(f"{name}: innocents", row["innocents"], "x", bar.innocents),
    ]
    if row["name"] == "2 bad links, 2 bad hosts":
        values.append(Value(f"{name}: links named", row["links_named"] / row["links"], "x", LINKS, at_least=True))
        values.append(Value(f"{name}: hosts exact", row["bad_hosts_exact"], "x", HOSTS, at_least=True))
    if row["name"] == "2 hosts that show it in 70 %":
        values.append(Value(f"{name}: missed", row["missed"], "x", MISSED))
    return [value for value in values if value.bar is not None]


HEADER = """# The planner on simulated clusters

<!-- made by `bench/run.py planner`: edit bench/planner.py or bench/simulations.py -->

Means over the runs, without the local round. *Rounds* includes the world at the beginning and, where one is left to
test, the world that confirms; *named after* is the round after which the diagnosis did not change any more. *Exact*:
hosts, links and partitions named are those that are bad, no more and no less (where tests fail by chance: the hosts).
In brackets the bar, where there is one.

"""
COLUMNS = ("scenario", "hosts", "runs", "rounds", "most", "named after", "exact", "innocents", "missed", "links named")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in rows)]
    return HEADER + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    bar = BARS.get((row["name"], row["hosts"]), Bar(None, None, None))
    return (
        row["name"],
        str(row["hosts"]),
        str(row["runs"]),
        f"{row['rounds']:.1f}{bracket(bar.rounds)}",
        str(row["most_rounds"]),
        f"{row['named_after']:.1f}{bracket(bar.named_after)}",
        f"{100 * row['exact']:.1f} %{bracket(bar.exact and 100 * bar.exact, ' %')}",
        f"{row['innocents']:.3f}{bracket(bar.innocents)}",
        f"{row['missed']:.3f}",
        f"{row['links_named'] * row['runs']:.0f} of {row['links'] * row['runs']:.0f}" if row["links"] else "",
    )


def bracket(bar: float | None, unit: str = "") -> str:
    return "" if bar is None else f" ({bar:g}{unit})"
