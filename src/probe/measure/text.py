"""The result for people: `Bench` -> a table, a block for each program, each figure beside its limit.

::

    probe bench: 1 x NVIDIA H100 80GB HBM3, driver 580.159.04, torch 2.11.0+cu130; 61.3 s
    regression: matmul bf16 8192: 784 -> 721 TFLOP/s (-8.0 %, 5 % allowed, 0.4 % noise)

    matmul  (TFLOP/s)          median      5 %     95 %    n   limit  of it
      bf16 8192                   784      779      788   96    1071   73 %

GPUs share a line, which shows the slowest; collectives are a table of their own, sizes by operations.
"""

from collections.abc import Callable, Iterable, Sequence

from probe.cluster.hosts import fold
from probe.measure import words
from probe.measure.model import Bench, Change, Condition, Done, Program, Result

WIDTH = 34
NOT_COMPARED = "nothing could be compared"
SHOWN_CHECKS = 6
REASONS = {0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake", 0x4: "power cap"}
"""Of NVML's clocks event reasons those that cost speed."""
COLOURS = {"good": 32, "bad": 31, "dim": 2, "bold": 1}
Paint = Callable[[str, str], str]


def render(report: Bench, *, colour: bool = False) -> str:
    paint: Paint = (lambda how, text: f"\x1b[{COLOURS[how]}m{text}\x1b[0m") if colour else (lambda how, text: text)
    report = words.shown(report)
    lines = [paint("bold", headline(report)), *hosts(report), *(paint("bad", line) for line in notes(report))]
    if report.comparison is not None:
        lines += comparison(report, paint)
    for program in report.programs:
        lines += ["", *_block(program, report, paint)]
    return "".join(line + "\n" for line in lines)


def headline(report: Bench) -> str:
    where = report.provenance
    parts = [where.machine]
    parts += [f"driver {where.driver}"] if where.driver else []
    parts += [f"torch {where.torch}"] if where.torch else []
    partial = " (partial)" if report.partial else ""
    return f"probe bench: {', '.join(parts)}; {report.elapsed_s:.1f} s{partial}"


def hosts(report: Bench) -> list[str]:
    """Where the ranks were, if not on this host alone."""
    where = report.provenance
    if not where.hosts:
        return []
    backend = f", {where.backend}" if where.backend else ""
    return [f"hosts: {fold(host.host for host in where.hosts)} ({where.launcher}{backend})"]


def notes(report: Bench) -> list[str]:
    """What a reader must know before any figure."""
    found = [f"note: {note}" for note in report.notes]
    found += [f"fail: {one.program}: {one.reason}" for one in report.programs if one.status is Done.FAIL]
    held = {program.program: held_back(program.conditions) for program in report.programs}
    for what in dict.fromkeys(filter(None, held.values())):
        programs = ", ".join(name for name in held if held[name] == what)
        found += [f"note: clocks were held back by {what}: {programs}"]
    return found


def held_back(conditions: Iterable[Condition]) -> str:
    """What kept the clocks down meanwhile: heat and hardware always, the power cap too since it bounds every figure."""
    seen = 0
    for condition in conditions:
        seen |= condition.throttle_reasons_during or 0
    return ", ".join(name for bit, name in REASONS.items() if seen & bit)


# ---- the comparison --------------------------------------------------------------------------------------------------


def comparison(report: Bench, paint: Paint) -> list[str]:
    found = report.comparison
    assert found is not None
    more = (
        " (more where a case differs anyway)"
        if any((one.allowed or 0) > found.tolerance for one in found.changes)
        else ""
    )
    lines = [f"against {found.baseline} of {found.baseline_started_at[:16]}, {100 * found.tolerance:g} % allowed{more}"]
    lines += [f"  changed since: {difference}" for difference in found.differences]
    worse = [change for change in found.changes if change.verdict == "regression"]
    better = [change for change in found.changes if change.verdict == "better"]
    lines += [paint("bad", f"  regression: {line}") for line in folded(worse)]
    lines += [paint("good", f"  better: {line}") for line in folded(better)]
    silent = [change for change in found.changes if change.verdict == "unjudged"]
    gone = sum(change.verdict == "gone" for change in found.changes)
    told = f"{len(worse)} of {found.judged} figures are worse" if found.judged else paint("bad", NOT_COMPARED)
    missing = f"; {gone} of the baseline were not measured" if gone else ""
    return [*lines, f"  {told}; {len(silent)} have too few passes to tell{missing}"]


def folded(changes: Sequence[Change]) -> list[str]:
    """A line for each case; of several GPUs the one that changed most."""
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.program, change.case), []).append(change)
    most = [max(group, key=lambda change: abs(change.change or 0.0)) for group in groups.values()]
    counts = [len(group) for group in groups.values()]
    return [
        say(change) + (f", and {count - 1} more GPUs" if count > 1 else "")
        for change, count in zip(most, counts, strict=True)
    ]


def say(change: Change) -> str:
    """``matmul bf16 8192: 784 -> 721 TFLOP/s (-8.0 %; allowed 5 %, noise 0.4 %)``."""
    assert change.baseline is not None
    assert change.current is not None
    percent = f"{100 * (change.current / change.baseline - 1):+.1f} %"
    where = f" on {change.target[4:16]}" if change.target.startswith("gpu:") else ""
    bounds = f"allowed {100 * (change.allowed or 0):.0f} %, noise {100 * (change.noise or 0):.1f} %"
    values = f"{figure(change.baseline, change.unit)} -> {figure(change.current, change.unit)}"
    return f"{change.program} {change.case}{where}: {values} {shown_unit(change.unit)} ({percent}; {bounds})"


# ---- a program -------------------------------------------------------------------------------------------------------


def _block(program: Program, report: Bench, paint: Paint) -> list[str]:
    results = [one for one in report.results if one.program == program.program]
    head = paint("bold", program.program)
    if program.status is not Done.DONE and not results:
        return [f"{head}  {program.status}: {program.reason}"]
    if not results:
        lines = [f"{head}  nothing measured"]
    elif program.program == "collective":
        lines = _collectives(head, results)
    elif program.program == "peer":
        lines = _matrix(head, results, paint)
    elif program.program == "checks":
        lines = _checks(head, results)
    else:
        lines = [_heading(head, program.program, results), *(_row(group, report, paint) for group in by_case(results))]
    lines += [paint("dim", f"  limit {why}") for why in unknown(results)]
    if program.left_out:
        first, more = program.left_out[0], len(program.left_out) - 1
        lines.append(paint("dim", f"  left out: {first}{f' (and {more} more)' if more else ''}"))
    return lines


def unknown(results: Iterable[Result]) -> list[str]:
    """Why figures have no limit beside them, each reason once."""
    sources = (one.limit_source for one in results if one.limit is None)
    return list(dict.fromkeys(source for source in sources if source.startswith("unknown")))


def _heading(head: str, name: str, results: Sequence[Result]) -> str:
    unit = shown_unit(results[0].unit) if results else ""
    pad = " " * max(0, WIDTH + 2 - len(name) - len(unit) - 4)
    return f"{head}  ({unit}){pad}{'median':>9}{'5 %':>9}{'95 %':>9}{'n':>6}{'limit':>9}  of it"


def by_case(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each case, of the slowest target first."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.case, []).append(result)
    return [sorted(group, key=lambda one: one.median, reverse=group[0].unit == "s") for group in groups.values()]


def _row(group: Sequence[Result], report: Bench, paint: Paint) -> str:
    one = group[0]
    name = one.case + (f", slowest of {len(group)}" if len(group) > 1 else "")
    values = "".join(f"{figure(value, one.unit):>9}" for value in (one.median, one.p5, one.p95))
    limit, share = (figure(one.limit, one.unit), f"{one.median / one.limit:.0%}") if one.limit else ("-", "")
    bad = sorted(report.provenance.place(each.target) for each in group if each.verified is False)
    where = f" on GPU {', '.join(bad)}" if len(group) > 1 else ""
    wrong = paint("bad", f"  WRONG RESULT{where}") if bad else ""
    return f"  {name:<{WIDTH}}{values}{one.n:>6}{limit:>9}  {share}{wrong}".rstrip()


def _checks(head: str, results: Sequence[Result]) -> list[str]:
    """The whole run and what costs most of it."""
    ordered = sorted(results, key=lambda one: -one.median)
    lines = [f"{head}  of probe check, the slowest {min(SHOWN_CHECKS, len(ordered))} of {len(ordered)}; --json has all"]
    return lines + [
        f"  {one.case:<{WIDTH}}{figure(one.median, 's'):>9} {shown_unit('s')}" for one in ordered[:SHOWN_CHECKS]
    ]


def _matrix(head: str, results: Sequence[Result], paint: Paint) -> list[str]:
    """Rows send, columns receive."""
    values = {(one.data["from"], one.data["to"]): one.median for one in results}
    count = 1 + max((max(int(str(a)), int(str(b))) for a, b in values), default=0)
    lines = [f"{head}  (GB/s)  from row to column" + _limits(results)]
    lines.append("  " + " " * 6 + "".join(f"{column:>8}" for column in range(count)))
    for row in range(count):
        cells = (figure(values[row, column], "GB/s") if (row, column) in values else "-" for column in range(count))
        lines.append(f"  {row:>6}" + "".join(f"{cell:>8}" for cell in cells))
    return lines + [paint("bad", f"  WRONG RESULT: {one.case}") for one in results if one.verified is False]


def _limits(results: Sequence[Result]) -> str:
    known = [one.limit for one in results if one.limit]
    return f", limit {figure(max(known), 'GB/s')}" if known else ""


def _collectives(head: str, results: Sequence[Result]) -> list[str]:
    """Bus bandwidth, sizes down and operations across; small sizes as the time of one call."""
    ops = list(dict.fromkeys(str(one.data["op"]) for one in results))
    sizes = sorted({int(str(one.data["size_bytes"])) for one in results})
    cells = {(one.data["size_bytes"], one.data["op"]): one for one in results}
    limits = {str(one.data["op"]): one.limit for one in results}
    lines = [f"{head}  over {results[0].data['ranks']} ranks: busbw in GB/s (time of one call)"]
    lines.append(f"  {'':<9}" + "".join(f"{op:>20}" for op in ops))
    for size in sizes:
        row = "".join(f"{_cell(cells.get((size, op))):>20}" for op in ops)
        lines.append(f"  {size_name(size):<9}{row}")
    if any(limits.values()):
        shown = (figure(limit, "GB/s") if (limit := limits[op]) else "-" for op in ops)
        lines.append(f"  {'limit':<9}" + "".join(f"{value:>20}" for value in shown))
    return lines


def _cell(one: Result | None) -> str:
    if one is None:
        return "-"
    wrong = "" if one.verified else " WRONG"
    return f"{figure(one.median, 'GB/s')} ({duration(float(str(one.data['time_s'])))}){wrong}"


# ---- numbers ---------------------------------------------------------------------------------------------------------


def figure(value: float, unit: str) -> str:
    """Three or four digits; seconds as milliseconds."""
    value = value * 1e3 if unit == "s" else value
    if value >= 1000:
        return f"{value:.0f}"
    digits = 1 if value >= 100 else 2 if value >= 10 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def shown_unit(unit: str) -> str:
    return "ms" if unit == "s" else unit


def duration(seconds: float) -> str:
    for factor, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def size_name(size: int) -> str:
    for shift, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            number = size / (1 << shift)
            return f"{number:.0f} {name}" if number == int(number) else f"{number:.1f} {name}"
    return f"{size} B"
