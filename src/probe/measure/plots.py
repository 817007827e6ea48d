"""Plots as inline SVG, written by hand: no library, no script, no font, nothing that is fetched.

Colours are CSS variables of the page, so that one drawing serves light and dark. Every mark has a `<title>`, which
browsers show beside the pointer; the numbers are in the page's tables as well. Pure.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 756
LEFT, RIGHT, TOP, BOTTOM = 62, 30, 34, 44
ROW = 26
LABELS = 200
VALUES = 160
SERIES = ("--s1", "--s2", "--s3", "--s4", "--s5", "--s6", "--s7", "--s8")
Say = Callable[[float], str]


class Point(NamedTuple):
    x: float
    y: float
    low: float
    high: float


class Line(NamedTuple):
    name: str
    points: Sequence[Point]


class Bar(NamedTuple):
    name: str
    value: float
    said: str
    """The value, in words."""
    limit: float | None = None
    limit_said: str = ""
    bad: bool = False
    kind: str = ""


class Change(NamedTuple):
    """One case against the baseline; fractions, positive is better."""

    name: str
    change: float
    noise: float
    allowed: float
    verdict: str
    said: str


def svg(name: str, title: str, width: float, height: float, body: Sequence[str]) -> str:
    return (
        f'<svg id="plot-{escape(name)}" class="plot" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">{"".join(body)}</svg>'
    )


def text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def hover(mark: str, words: str) -> str:
    return f"<g>{mark}<title>{escape(words)}</title></g>"


# ---- curves ----------------------------------------------------------------------------------------------------------


def curves(
    name: str, title: str, lines: Sequence[Line], *, x_said: Say, y_said: Say, unit: str, limit: float | None = None,
    log_y: bool = False,
) -> str:  # fmt: skip
    """Lines over a logarithmic x, with the range from the 5th to the 95th percentile as a band; a dashed limit."""
    height = 300
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    xs = sorted({point.x for point in points})
    if len(xs) == 1:  # no curve
        rows = [Bar(line.name, line.points[0].y, f"{y_said(line.points[0].y)} {unit}".strip()) for line in lines]
        return bars(name, f"{title}: {x_said(xs[0])}", rows)
    low_x, high_x = math.log(xs[0]), math.log(xs[-1])
    highest = max([point.high for point in points] + ([limit] if limit else []))
    lowest = min(point.low for point in points) if log_y else 0.0
    place_y = _log_scale(lowest, highest, height) if log_y else _scale(highest, height)

    def place_x(x: float) -> float:
        part = (math.log(x) - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    body = _y_axis(_log_ticks(lowest, highest) if log_y else ticks(highest), place_y, y_said, unit)
    shown = xs if len(xs) <= 7 else xs[:: math.ceil(len(xs) / 7)]
    body += [text(place_x(x), height - BOTTOM + 18, x_said(x), "tick", "middle") for x in shown]
    if limit:
        y = place_y(limit)
        mark = f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        body.append(hover(mark, f"limit {y_said(limit)} {unit}"))
        body.append(text(LEFT + 6, y - 5, f"limit {y_said(limit)}", "tick"))
    for at, line in enumerate(lines):
        body += _line(line, SERIES[at % len(SERIES)], place_x, place_y, x_said, y_said, unit)
    return svg(name, title, WIDTH, height, body) + legend([line.name for line in lines])


def _line(
    line: Line, colour: str, place_x: Callable[[float], float], place_y: Callable[[float], float],
    x_said: Say, y_said: Say, unit: str,
) -> list[str]:  # fmt: skip
    at = sorted(line.points)
    upper = [f"{place_x(p.x):.1f},{place_y(p.high):.1f}" for p in at]
    lower = [f"{place_x(p.x):.1f},{place_y(p.low):.1f}" for p in reversed(at)]
    middle = " ".join(f"{place_x(p.x):.1f},{place_y(p.y):.1f}" for p in at)
    style = f'style="--c:var({colour})"'
    marks = [f'<polygon class="band" {style} points="{" ".join(upper + lower)}"/>']
    marks.append(f'<polyline class="line" {style} points="{middle}"/>')
    for p in at:
        dot = f'<circle class="dot" {style} cx="{place_x(p.x):.1f}" cy="{place_y(p.y):.1f}" r="3.5"/>'
        marks.append(
            hover(dot, f"{line.name}, {x_said(p.x)}: {y_said(p.y)} {unit} ({y_said(p.low)} to {y_said(p.high)})")
        )
    return marks


def legend(names: Sequence[str]) -> str:
    keys = [
        f'<span class="key"><i style="background:var({SERIES[at % len(SERIES)]})"></i>{escape(name)}</span>'
        for at, name in enumerate(names)
    ]
    return f'<div class="legend">{"".join(keys)}</div>' if len(names) > 1 else ""


def _scale(highest: float, height: float) -> Callable[[float], float]:
    top = max(ticks(highest)[-1], highest)
    return lambda y: height - BOTTOM - y / top * (height - TOP - BOTTOM)


def _log_scale(lowest: float, highest: float, height: float) -> Callable[[float], float]:
    low, high = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    high = max(high, low + 1)
    return lambda y: height - BOTTOM - (math.log10(y) - low) / (high - low) * (height - TOP - BOTTOM)


def _y_axis(at: Sequence[float], place: Callable[[float], float], said: Say, unit: str) -> list[str]:
    body = []
    for value in at:
        y = place(value)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(text(LEFT - 8, y + 4, said(value), "tick", "end"))
    return [*body, text(LEFT - 8, 14, unit, "tick", "end")]


def ticks(highest: float) -> list[float]:
    """Four to seven round numbers from 0 to at least `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw)
    return [step * at for at in range(math.ceil(highest / step - 1e-9) + 1)]


def _log_ticks(lowest: float, highest: float) -> list[float]:
    low, high = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


# ---- bars ------------------------------------------------------------------------------------------------------------


def bars(name: str, title: str, rows: Sequence[Bar], *, share: bool = False) -> str:
    """A horizontal bar each; with `share` as a part of its own limit, whose end is the right edge."""
    if not rows:
        return ""
    room = WIDTH - LABELS - VALUES
    most = max(row.value for row in rows) or 1.0
    body = []
    for at, row in enumerate(rows):
        y = at * ROW + 6
        whole = row.limit if share and row.limit else most
        length = max(1.0, min(1.0, row.value / whole) * room)
        body.append(text(LABELS - 10, y + 13, cut(row.name, 30), "label", "end"))
        if share:
            body.append(f'<rect class="track" x="{LABELS}" y="{y}" width="{room}" height="18" rx="3"/>')
        css = "bar bad" if row.bad else "bar"
        mark = f'<rect class="{css}" x="{LABELS}" y="{y}" width="{length:.1f}" height="18" rx="3"/>'
        words = f"{row.name}: {row.said}" + (f" of {row.limit_said}" if row.limit_said else "")
        body.append(hover(mark, words))
        end = LABELS + room + 10 if share else LABELS + length + 8
        percent = f"{row.value / row.limit:.0%} of {row.limit_said}" if share and row.limit else row.said
        body.append(text(end, y + 13, percent, "value"))
    return svg(name, title, WIDTH, len(rows) * ROW + 8, body)


def cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def stacked(name: str, title: str, parts: Sequence[tuple[str, float, str]]) -> str:
    """One bar of parts that follow each other: name, length, and the length in words."""
    whole = sum(length for _, length, _ in parts)
    if not whole:
        return ""
    body, x = [], 0.0
    for at, (label, length, said) in enumerate(parts):
        width = length / whole * WIDTH
        style = f'style="--c:var({SERIES[at % len(SERIES)]})"'
        mark = f'<rect class="part" {style} x="{x:.1f}" y="4" width="{max(0.5, width - 1.5):.1f}" height="34" rx="3"/>'
        body.append(hover(mark, f"{label}: {said}"))
        x += width
    return svg(name, title, WIDTH, 42, body) + legend([f"{label} {said}" for label, _, said in parts])


# ---- the matrix ------------------------------------------------------------------------------------------------------


def matrix(name: str, title: str, values: dict[tuple[int, int], float], said: Say, unit: str) -> str:
    """Rows send, columns receive; the shade runs from the slowest to the fastest pair."""
    count = 1 + max((max(pair) for pair in values), default=0)
    cell = max(36.0, min(72.0, 560 / count))
    low, high = min(values.values()), max(values.values())
    body = [text(60 + cell * count / 2, 14, "to GPU", "tick", "middle"), text(4, 44, "from", "tick")]
    for at in range(count):
        body.append(text(60 + cell * (at + 0.5), 32, str(at), "label", "middle"))
        body.append(text(50, 40 + cell * (at + 0.5) + 4, str(at), "label", "end"))
    for (row, column), value in sorted(values.items()):
        part = 1.0 if high - low < 0.02 * high else (value - low) / (high - low)
        x, y = 60 + cell * column, 40 + cell * row
        style = f'style="--heat:{0.18 + 0.82 * part:.3f}"'
        place = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell - 2:.1f}" height="{cell - 2:.1f}"'
        mark = f'<rect class="heat" {style} {place} rx="4"/>'
        css = "onheat" if part > 0.45 else "value"
        number = text(x + cell / 2, y + cell / 2 + 4, said(value), css, "middle")
        body.append(hover(mark + number, f"{row} to {column}: {said(value)} {unit}"))
    return svg(name, title, 80 + cell * count, 50 + cell * count, body)


# ---- against the baseline --------------------------------------------------------------------------------------------


def changes(name: str, title: str, rows: Sequence[Change]) -> str:
    """Each case's change, right is better; the shaded part is what is allowed, the whisker what chance may show."""
    if not rows:
        return ""
    widest = max([abs(row.change) + row.noise for row in rows] + [1.5 * min(row.allowed for row in rows), 0.02])
    middle = LABELS + (WIDTH - LABELS - 70) / 2
    room = (WIDTH - LABELS - 70) / 2

    def place(fraction: float) -> float:
        return middle + max(-1.0, min(1.0, fraction / widest)) * room

    height = len(rows) * ROW + 30
    body = [f'<line class="axis" x1="{middle}" x2="{middle}" y1="0" y2="{height - 24}"/>']
    # short of the ends, where the words for them stand
    marks = [tick for tick in ticks(widest)[1:] if tick < 0.8 * widest]
    for part in [-tick for tick in marks] + marks:
        x = place(part)
        body.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 24}"/>')
        body.append(text(x, height - 6, f"{100 * part:+g} %", "tick", "middle"))
    for at, row in enumerate(rows):
        y = at * ROW + 6
        low, high = place(-row.allowed), place(row.allowed)
        body.append(f'<rect class="allowed" x="{low:.1f}" y="{y - 3}" width="{high - low:.1f}" height="{ROW}"/>')
        body.append(text(LABELS - 10, y + 13, cut(row.name, 30), "label", "end"))
        left, right = sorted((middle, place(row.change)))
        css = {"regression": "bar bad", "better": "bar good"}.get(row.verdict, "bar quiet")
        mark = (
            f'<rect class="{css}" x="{left:.1f}" y="{y + 2}" width="{max(1.0, right - left):.1f}" height="14" rx="2"/>'
        )
        a, b = place(row.change - row.noise), place(row.change + row.noise)
        mark += f'<line class="whisker" x1="{a:.1f}" x2="{b:.1f}" y1="{y + 9}" y2="{y + 9}"/>'
        body.append(hover(mark, row.said))
        body.append(text(WIDTH - 4, y + 13, f"{100 * row.change:+.1f} %", "value", "end"))
    body.append(text(place(-widest), height - 6, "worse", "tick"))
    body.append(text(place(widest), height - 6, "better", "tick", "end"))
    return svg(name, title, WIDTH, height, body)
