"""The result as one page: HTML with everything in it, which opens offline and runs no script.

::

    what was measured, on what -> what is wrong -> against the limits -> against the baseline
    -> a section for each program -> conditions -> every figure

What is compared stands first; every number of a plot is in the table at the end as well. Pure. Over 300 lines because
each program has a section of its own, and all of them share the words and tables of one page.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest

from probe.cluster.hosts import fold
from probe.measure import plots, words
from probe.measure.model import Bench, Change, Comparison, Condition, Done, Gpu, Program, Result
from probe.measure.style import STYLE
from probe.measure.text import (
    NOT_COMPARED,
    by_case,
    duration,
    figure,
    held_back,
    notes,
    say,
    shown_unit,
    size_name,
    unknown,
)

MOST_CHANGES = 30
MOST_CHECKS = 15
MOST_CARDS = 6


def render(report: Bench) -> str:
    """The whole page."""
    report = words.shown(report)
    title = said(f"probe bench: {report.provenance.machine}")
    parts = [
        head(report),
        summary(report),
        against_baseline(report),
        *(section(report, program) for program in report.programs),
        conditions(report),
        hosts(report),
        table(report),
        footer(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing may be fetched, whatever a name in the results contains
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(filter(None, parts))}</main></body></html>\n"
    )


def said(value: object) -> str:
    return escape(str(value))


# ---- the head --------------------------------------------------------------------------------------------------------


def head(report: Bench) -> str:
    where = report.provenance
    facts = [
        ("host", report.host),
        ("hosts", f"{fold(host.host for host in where.hosts)} ({where.launcher})" if where.hosts else ""),
        ("backend", where.backend),
        ("when", f"{report.started_at[:19].replace('T', ' ')} {report.started_at[23:]}"),
        ("took", f"{report.elapsed_s:.1f} s of {report.time_s:g} s"),
        ("driver", f"{where.driver} (CUDA {where.driver_cuda})" if where.driver else ""),
        ("torch", where.torch),
        ("CPU", f"{where.cpu}, {where.cores} cores"),
        ("kernel", where.kernel),
        ("probe", report.probe_version),
    ]
    cells = "".join(f"<div><dt>{said(name)}</dt><dd>{said(value)}</dd></div>" for name, value in facts if value)
    partial = '<span class="tag">partial</span>' if report.partial else ""
    found = [f'<li class="{"bad" if note.startswith("fail") else ""}">{said(note)}</li>' for note in notes(report)]
    listed = f'<ul class="notes">{"".join(found)}</ul>' if found else ""
    title = f'<p class="over">probe bench</p><h1>{said(where.machine)} {partial}</h1>'
    return f"<header>{title}<dl>{cells}</dl>{listed}</header>"


def summary(report: Bench) -> str:
    """The best of each kind beside what the hardware could do."""
    rows = [
        plots.Bar(name, one.median, measured(one), one.limit, limited(one), kind=one.program)
        for name, one in highlights(report)
    ]
    if not rows:
        return ""
    known = [row for row in rows if row.limit]
    cards = "".join(
        f'<div class="card"><b>{said(row.said.rpartition(" ")[0])}</b> <span>{said(row.said.rpartition(" ")[2])}</span>'
        f"<p>{said(row.name)}</p></div>"
        for row in in_turn(rows)[:MOST_CARDS]
    )
    plot = plots.bars("limits", "Measured, as a part of the limit", known, share=True)
    reasons = [source.removeprefix("unknown: ") for source in unknown(report.results)]
    why = "" if known else f'<p class="quiet">No limit is known: {said("; ".join(reasons))}.</p>'
    title = "Against the limit" if known else "The best of each kind"
    return f'<section><h2>{title}</h2><div class="cards">{cards}</div>{plot}{why}</section>'


def in_turn(rows: Iterable[plots.Bar]) -> list[plots.Bar]:
    """One of each program first: with many dtypes and ways the collectives would never come."""
    kinds: dict[str, list[plots.Bar]] = {}
    for row in rows:
        kinds.setdefault(row.kind, []).append(row)
    return [row for turn in zip_longest(*kinds.values()) for row in turn if row is not None]


def highlights(report: Bench) -> list[tuple[str, Result]]:
    """One figure of each kind: the largest product of each dtype, the largest copies, the best of each collective."""
    best: dict[str, Result] = {}
    for group in by_case([one for one in report.results if one.program not in ("startup", "checks", "peer")]):
        one = group[0]
        key = str(one.data.get("dtype") or one.data.get("way") or one.data.get("op") or "copy")
        size = one.data.get("size") or one.data.get("size_bytes") or 0
        known = best.get(f"{one.program} {key}")
        held = (known.data.get("size") or known.data.get("size_bytes") or 0) if known else -1
        better = one.median > known.median if known and one.program == "collective" else int(str(size)) > int(str(held))
        if known is None or better:
            best[f"{one.program} {key}"] = one
    found = [
        (f"{one.program} {one.case}".replace("memory copy", "copy").removeprefix("collective ").replace("_", "-"), one)
        for one in best.values()
    ]
    pairs = [one for one in report.results if one.program == "peer"]
    if pairs:
        slowest = min(pairs, key=lambda one: one.median)
        found.append((f"GPU {slowest.case}, the slowest pair", slowest))
    return found


def measured(one: Result) -> str:
    return f"{figure(one.median, one.unit)} {shown_unit(one.unit)}"


def limited(one: Result) -> str:
    return f"{figure(one.limit, one.unit)} {shown_unit(one.unit)}" if one.limit else ""


# ---- against the baseline --------------------------------------------------------------------------------------------


def against_baseline(report: Bench) -> str:
    found = report.comparison
    if found is None:
        return ""
    judged = [change for change in most_changed(found.changes) if change.noise is not None]
    judged.sort(key=lambda change: (change.verdict == "same", change.change))
    rows = [
        plots.Change(
            change.case.replace("_", "-") if change.program != "peer" else f"GPU {change.case}",
            change.change or 0.0,
            change.noise or 0.0,
            change.allowed or 0.0,
            change.verdict,
            say(change),
        )
        for change in judged[:MOST_CHANGES]
    ]
    cases = sum(change.verdict == "regression" for change in judged)
    well = found.judged and not found.regressions
    verdict = f'<p class="verdict {"good" if well else "bad"}">{regressed(found, cases)}</p>'
    other = "".join(f"<li>{said(difference)}</li>" for difference in found.differences)
    changed = f'<p>Not as it was then:</p><ul class="notes">{other}</ul>' if other else ""
    more = (
        f'<p class="quiet">{len(judged) - MOST_CHANGES} more are in the file.</p>' if len(judged) > MOST_CHANGES else ""
    )
    plot = plots.changes("changes", "Change against the baseline", rows)
    title = f"Against {said(found.baseline)} of {said(found.baseline_started_at[:10])}"
    how = f"Shaded: allowed. Whisker: what chance may show ({said(found.statistic)})."
    return f'<section><h2>{title}</h2>{verdict}{changed}{plot}{more}<p class="quiet">{how}</p></section>'


def most_changed(changes: Iterable[Change]) -> list[Change]:
    """One of each case: of several GPUs the one that changed most, a regression before all."""
    best: dict[tuple[str, str], Change] = {}
    for change in changes:
        known = best.setdefault((change.program, change.case), change)
        weight, held = [(one.verdict == "regression", abs(one.change or 0.0)) for one in (change, known)]
        if weight > held:
            best[change.program, change.case] = change
    return list(best.values())


def regressed(found: Comparison, cases: int) -> str:
    """`cases` have a bar: of several GPUs the one that changed most."""
    if not found.judged:
        return NOT_COMPARED
    count = found.regressions
    folded = f", of {cases} case{'s' if cases > 1 else ''} on several GPUs" if count > cases else ""
    return f"{count} figure{'s are' if count > 1 else ' is'} worse{folded}" if count else "no regression"


# ---- the programs ----------------------------------------------------------------------------------------------------

TITLES = {
    "startup": ("Start-up", "What a program that uses torch waits for, in a fresh process."),
    "checks": ("Checks", "What each check of probe check costs; the slowest GPU stands for a check."),
    "matmul": ("Matrix products", "torch.mm, square, dense random inputs that take turns beyond the cache."),
    "memory": ("Device memory", "Copies within the memory of one GPU; bytes read and written both count."),
    "host": ("Host and GPU", "Copies between pinned host memory and the GPU."),
    "peer": ("GPU to GPU", "Copies between every ordered pair."),
    "collective": ("Collectives", "Bus bandwidth and time of one call, by nccl-tests' definitions."),
}


def section(report: Bench, program: Program) -> str:
    results = [one for one in report.results if one.program == program.program]
    title, about = TITLES[program.program]
    if not results:
        reason = f"{program.status}: {program.reason}"
        return f'<section><h2>{title}</h2><p class="quiet">{said(reason)}</p></section>'
    drawn = PLOTS[program.program](results)
    wrong = f'<p class="bad">{said(program.reason)}</p>' if program.status is Done.FAIL else ""
    left = f'<p class="quiet">Left out: {said("; ".join(program.left_out))}.</p>' if program.left_out else ""
    return f"<section><h2>{title}</h2><p>{about}</p>{wrong}{drawn}{left}</section>"


def startup(results: Sequence[Result]) -> str:
    torch = [one for one in results if not one.case.startswith("driver alone")]
    parts = [(one.case, one.median, duration(one.median)) for one in torch]
    alone = [(one.case.rpartition(" ")[2], one.median, duration(one.median)) for one in results if one not in torch]
    plot = plots.stacked("startup", "Start-up phases", parts)
    if alone:
        plot += "<p>The CUDA driver alone, without torch:</p>" + plots.stacked("driver", "The driver alone", alone)
    return plot


def checks(results: Sequence[Result]) -> str:
    ordered = sorted(results, key=lambda one: -one.median)[:MOST_CHECKS]
    rows = [plots.Bar(one.case, one.median, duration(one.median)) for one in ordered]
    return plots.bars("checks", "What each check costs", rows)


def by_size(results: Sequence[Result], key: str, size: str) -> list[plots.Line]:
    lines: dict[str, list[plots.Point]] = {}
    for group in by_case(results):
        one = group[0]  # the slowest target
        point = plots.Point(float(str(one.data[size])), one.median, min(one.p5, one.p95), max(one.p5, one.p95))
        lines.setdefault(str(one.data.get(key, "copy")).replace("_", "-"), []).append(point)
    return [plots.Line(name, points) for name, points in lines.items()]


def highest_limit(results: Sequence[Result]) -> float | None:
    known = {one.limit for one in results if one.limit}
    return known.pop() if len(known) == 1 else None


def matmul(results: Sequence[Result]) -> str:
    lines = by_size(results, "dtype", "size")
    return plots.curves(
        "matmul", "Products by size", lines, x_said=lambda x: f"{x:.0f}", y_said=_number, unit="TFLOP/s"
    ) + parts_of_limit("matmul-limits", [group[0] for group in by_case(results)])


def parts_of_limit(name: str, results: Sequence[Result]) -> str:
    rows = [
        plots.Bar(one.case, one.median, measured(one), one.limit, limited(one), bad=one.verified is False)
        for one in results
        if one.limit
    ]
    return plots.bars(name, "As a part of the limit", rows, share=True)


def memory(results: Sequence[Result]) -> str:
    return plots.curves(
        "memory", "Copies by size", by_size(results, "kind", "size_bytes"),
        x_said=_size, y_said=_number, unit="GB/s", limit=highest_limit(results),
    )  # fmt: skip


def host(results: Sequence[Result]) -> str:
    lines = by_size(results, "way", "size_bytes")
    one_way = [one for one in results if one.data.get("way") != "both at once"]
    return plots.curves(
        "host", "Copies by size", lines, x_said=_size, y_said=_number, unit="GB/s", limit=highest_limit(one_way)
    )


def peer(results: Sequence[Result]) -> str:
    values = {(int(str(one.data["from"])), int(str(one.data["to"]))): one.median for one in results}
    return plots.matrix("peer", "Copies between pairs", values, lambda v: figure(v, "GB/s"), "GB/s")


def collective(results: Sequence[Result]) -> str:
    lines = by_size(results, "op", "size_bytes")
    times = [line._replace(points=[_at_time(results, line.name, point.x) for point in line.points]) for line in lines]
    return plots.curves(
        "collective", "Bus bandwidth by size", lines, x_said=_size, y_said=_number, unit="GB/s",
        limit=highest_limit([one for one in results if one.data.get("op") != "all_reduce"]),
    ) + plots.curves(
        "latency", "Time of one call by size", times, x_said=_size, y_said=duration, unit="", log_y=True
    )  # fmt: skip


def _at_time(results: Sequence[Result], op: str, size: float) -> plots.Point:
    """The time of one call; its range is that of the bandwidth, turned over."""
    for one in results:
        if str(one.data["op"]).replace("_", "-") == op and one.data["size_bytes"] == size:
            time_s = float(str(one.data["time_s"]))
            bounds = sorted(time_s * one.median / rate if rate else time_s for rate in (one.p5, one.p95))
            return plots.Point(size, time_s, *bounds)
    raise LookupError(op)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _size(value: float) -> str:
    return size_name(int(value))


PLOTS = {
    "startup": startup,
    "checks": checks,
    "matmul": matmul,
    "memory": memory,
    "host": host,
    "peer": peer,
    "collective": collective,
}


# ---- conditions and figures ------------------------------------------------------------------------------------------


def conditions(report: Bench) -> str:
    """Clocks, heat and throttle reasons of each GPU around each program."""
    gpus = report.provenance.gpus
    if not gpus:
        return ""
    rows = [
        _around(program.program, one, report)
        for program in report.programs
        for one in program.conditions
        if program.status is not Done.SKIP
    ]
    described = "".join(_cells(str(at), gpu.name, gpu.uuid, *_facts(gpu)) for at, gpu in enumerate(gpus))
    return (
        '<section><h2>Conditions</h2><div class="wide"><table><tr><th>program<th>GPU<th>SM clock before, during, after'
        f"<th>temperature<th>most power<th>held back by</tr>{''.join(rows)}</table></div>"
        '<div class="wide"><table><tr><th>GPU<th>name<th>UUID<th>SMs<th>highest clock<th>memory<th>PCIe<th>NVLinks'
        f"<th>power limit</tr>{described}</table></div></section>"
    )


def hosts(report: Bench) -> str:
    """Each of several hosts, and with what its ranks ran."""
    rows = [
        _cells(
            one.host,
            str(one.ranks),
            one.gpu or "-",
            f"{one.cpu}, {one.cores} cores",
            one.driver or "-",
            one.torch,
            one.nccl or "-",
            one.kernel,
            one.interface,
            f"{one.links_gbps:g} GB/s" if one.links_gbps else "not known",
        )
        for one in report.provenance.hosts
    ]
    names = ("host", "ranks", "GPU", "CPU", "driver", "torch", "NCCL", "kernel", "interface", "links")
    heading = "".join(f"<th>{name}" for name in names)
    listed = f'<div class="wide"><table><tr>{heading}</tr>{"".join(rows)}</table></div>'
    return f"<section><h2>Hosts</h2>{listed}</section>" if rows else ""


def _around(program: str, one: Condition, report: Bench) -> str:
    clocks = _change(one.sm_mhz_before, one.sm_mhz_during, one.sm_mhz_after, "MHz")
    heat = _change(one.celsius_before, one.celsius_after, None, "°C")
    power = f"{one.watts_during:.0f} W" if one.watts_during is not None else "-"
    return _cells(program, report.provenance.place(one.target), clocks, heat, power, held_back([one]) or "nothing")


def _facts(gpu: Gpu) -> Iterable[str]:
    yield str(gpu.sms or "-")
    yield f"{gpu.max_sm_mhz:.0f} MHz" if gpu.max_sm_mhz else "-"
    yield (
        f"{gpu.memory_bus_bits} bits, {gpu.max_memory_mhz:.0f} MHz"
        if gpu.memory_bus_bits and gpu.max_memory_mhz
        else "-"
    )
    yield f"{gpu.pcie_generation}.0 x{gpu.pcie_width}" if gpu.pcie_generation else "-"
    yield f"{gpu.nvlinks} x {gpu.nvlink_gbps:g} GB/s" if gpu.nvlinks and gpu.nvlink_gbps else str(gpu.nvlinks or "-")
    yield f"{gpu.power_limit_watts:.0f} W" if gpu.power_limit_watts else "-"


def _change(before: float | None, during: float | None, after: float | None, unit: str) -> str:
    shown = [f"{value:.0f}" for value in (before, during, after) if value is not None]
    return f"{' → '.join(shown)} {unit}" if shown else "-"


def _cells(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{said(cell)}' for cell in cells)}</tr>"


def table(report: Bench) -> str:
    changes = (
        {(one.program, one.case, one.target): one for one in report.comparison.changes} if report.comparison else {}
    )
    rows = "".join(_row(one, report, changes.get((one.program, one.case, one.target))) for one in report.results)
    names = ["program", "case", "GPU", "median", "5 %", "95 %", "n", "limit", "of it", "verified", "how it is reckoned"]
    names += ["change"] if report.comparison is not None else []
    heading = "".join(f"<th>{name}" for name in names)
    return f'<section><h2>Every figure</h2><div class="wide"><table><tr>{heading}</tr>{rows}</table></div></section>'


def _row(one: Result, report: Bench, change: Change | None) -> str:
    numbers = [figure(value, one.unit) for value in (one.median, one.p5, one.p95)]
    unit = shown_unit(one.unit)
    right = {True: "yes", False: "WRONG", None: ""}[one.verified]
    share = f"{one.median / one.limit:.0%}" if one.limit else ""
    cells = [one.program, one.case, report.provenance.place(one.target), f"{numbers[0]} {unit}", *numbers[1:]]
    cells += [str(one.n), limited(one) or "-", share, right, one.limit_source]
    if report.comparison is not None:
        cells.append(
            "" if change is None or change.change is None else f"{100 * change.change:+.1f} % ({change.verdict})"
        )
    return _cells(*cells)


def footer(report: Bench) -> str:
    words = f"probe {report.probe_version} on {report.host}. Medians with the 5th and 95th percentile of n samples."
    return f'<footer><p class="quiet">{said(words)} Definitions: docs/bench.md.</p></footer>'
