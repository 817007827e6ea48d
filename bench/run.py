"""Makes the figures that this machine can make, prints them beside their bars and keeps every sample.

::

    bench/run.py [NAME ...]  -->  table on stdout, bench/results/<UTC date>-<machine>.json, exit code 1: a bar is missed

The file holds what was made on that day and machine: a figure made again replaces its predecessor.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":  # started as a file: the repository is what it imports from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from bench import (  # figures are named for what they measure
    all_reduce,
    bench_gpu,
    beside,
    cpu8,
    engine,
    gate_dlrover,
    gate_faults,
    gate_pair,
    gate_reach,
    gate_world,
    gpu,
    growth,
    help,  # noqa: A004
    hung,
    hung_services,
    liveness,
    planner,
    services,
)
from bench.measure import Bench, Figure, Value, gpus, machine_name, provenance

RESULTS = Path(__file__).with_name("results")
Measure = Callable[[Bench], Figure | list[Figure]]
MEASURES: dict[str, Measure] = {
    "help": help.measure,
    "liveness": liveness.measure,
    "engine": engine.measure,
    "cpu8": cpu8.measure,
    "gpu": gpu.measure,
    "cuda_only": gpu.measure,
    "bench": bench_gpu.measure,
    "beside": beside.measure,
    "all_reduce": all_reduce.measure,
    "gate_pair": gate_pair.measure,
    "hung": hung.measure,
    "hung_services": hung_services.measure,
    "services": services.services,
    "memory": services.memory,
    "rested": services.rested,
    "growth": growth.measure,
    "planner": planner.measure,
    "gate_world": gate_world.measure,
    "gate_dlrover": gate_dlrover.measure,
    "gate_faults": gate_faults.measure,
    "gate_reach": gate_reach.measure,
}
NEED_GPUS = {"gpu", "cuda_only", "bench"}
NEED_SEVERAL = {"beside", "all_reduce", "gate_pair"}
NEED_ROOT = {"gate_faults", "gate_reach", "gate_pair"}


def main() -> int:
    options = parse(sys.argv[1:])
    measures = chosen(options.names)
    with tempfile.TemporaryDirectory(prefix="probe-bench-state-") as state:
        bench = Bench(
            python=options.python,
            probe=tuple(shlex.split(options.probe)) or (options.python, "-m", "probe"),
            state=Path(state) / "state",
            rounds=options.rounds,
            hung_runs=options.runs,
            fakes=not options.rootless,
        )
        made = [figure for measure in measures for figure in figures(measure, bench)]
        path = keep(options.out, provenance(bench), [figure for figure in made if figure])
    print(f"\n{machine_name()}: {path}")
    return int(any(figure is None or figure["missed"] for figure in made))


def figures(measure: Measure, bench: Bench) -> list[dict[str, Any] | None]:
    """What `measure` makes, shown, as it is kept; [None] when one of its runs went wrong: the others are not lost."""
    load = os.getloadavg()[0]
    try:
        result = measure(bench)
    except (AssertionError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"\n{measure.__module__}: no figure, a run went wrong: {error}", flush=True)
        return [None]
    made = result if isinstance(result, list) else [result]
    for figure in made:
        show(figure)
    return [stored(figure, load) for figure in made]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The figures of probe on this machine, beside their bars.")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *MEASURES], help=", ".join(MEASURES))
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="the interpreter under test")
    parser.add_argument("--probe", default="", metavar="CMD", help="the probe under test; else -m probe of --python")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="of the alternating figures (7 at least)")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="of the figure hung")
    parser.add_argument("--rootless", action="store_true", help="of the figure hung, only what needs no root")
    return parser.parse_args(argv)


def chosen(names: Sequence[str]) -> list[Measure]:
    """Those asked for, or all that this machine can; each once, since one may make several figures."""
    found = gpus()
    out = (NEED_GPUS if not found else set()) | (NEED_SEVERAL if len(found) < 2 else set())
    out |= NEED_ROOT if os.geteuid() else set()
    wanted = names or [name for name in MEASURES if name not in out]
    return list(dict.fromkeys(MEASURES[name] for name in wanted))


def show(figure: Figure) -> None:
    print(f"\n{figure.name}: {figure.what}")
    for value in figure.values:
        print(row(value))
    for note in figure.notes:
        print(f"    {note}")
    sys.stdout.flush()


def row(value: Value) -> str:
    number = f"{value.value:9.3f} {value.unit:2}" if value.unit else f"{value.value:9.0f}   "
    bar = "" if value.bar is None else f"{'>=' if value.at_least else '<='} {value.bar:g} {value.unit}".rstrip()
    verdict = {True: "within", False: "OVER", None: "reported"}[value.within]
    return f"  {value.name:34} {number}  {bar:10}  {verdict}"


def stored(figure: Figure, load: float) -> dict[str, Any]:
    """With the load before it, because another's work on the machine is in every sample."""
    medians = {
        name: median(side) for name, side in figure.samples.items() if side and all(isinstance(s, float) for s in side)
    }
    return {
        "name": figure.name,
        "what": figure.what,
        "values": [{**asdict(value), "within": value.within} for value in figure.values],
        "missed": figure.missed,
        "medians": medians,
        "samples": figure.samples,
        "notes": figure.notes,
        "load_before": load,
    }


def keep(folder: Path, where: dict[str, Any], made: list[dict[str, Any]]) -> Path:
    now = datetime.now(UTC)
    slug = re.sub(r"[^a-z0-9]+", "-", where["machine"].lower()).strip("-")
    path = folder / f"{now:%Y-%m-%d}-{slug}.json"
    figures = json.loads(path.read_text())["figures"] if path.exists() else {}
    for figure in made:
        figures[figure["name"]] = {**figure, "made_at": now.isoformat(timespec="seconds"), "provenance": where}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": "probe.figures/1", "machine": where["machine"], "figures": figures}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
