"""Small pictures as SVG text: for a page, which styles their classes, or a file of their own.

Every mark has a <title>, which browsers show on hover and readers read out; colours are of the page's style sheet (`STYLE` where a
picture stands alone), so light, dark and print come for free. Nothing is drawn that is not also in a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup

SERIES = 6  # colours and forms of marks, told apart also without colour (Okabe and Ito's palette)
STYLE = """
svg{--paper:#fff;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--c0:#0072b2;--c1:#c2540a;--c2:#00795a;--c3:#a8447e;--c4:#8a6d00;--c5:#3b3b3b;
font:12px system-ui,sans-serif;background:#fff}
@media(prefers-color-scheme:dark){svg{--paper:#14171a;--ink:#e6e8eb;--soft:#9aa4ae;--line:#3a424b;--c0:#56b4e9;--c1:#f0883e;--c2:#2fbf94;
--c3:#e08fbf;--c4:#e6c229;--c5:#c9c9c9;background:#14171a}}
"""
MARKS = """
.plot text{fill:var(--soft)}.plot .name{fill:var(--ink)}.plot .grid{stroke:var(--line);stroke-width:1}
.plot .axis{stroke:var(--soft);stroke-width:1}.plot polyline.path{fill:none;stroke-width:1.75}
.plot .front{fill:none;stroke:var(--soft);stroke-width:1.25;stroke-dasharray:4 4}
.plot .whisker{stroke-width:1.75}.plot .bar{fill:var(--c0);stroke:none}
""" + "".join(f".plot .s{n}{{stroke:var(--c{n});fill:var(--c{n})}}" for n in range(SERIES))
MARKS += ".plot .hollow{fill:var(--paper);stroke-width:1.5}"


class Point(NamedTuple):
    x: float
    y: float
    name: str  # what the title says of it
    low: float | None = None  # of y, an interval
    high: float | None = None
    series: int = 0  # its colour
    form: int = 0  # of its mark
    front: bool = True  # False is drawn hollow
    label: str = ""  # written beside it


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[Point]


def interval_bar(score: float, interval: tuple[float, float] | None, low: float = 0.0, width: int = 180) -> Markup:
    """A score and its interval on a scale from `low` to 1; without an interval a dot alone."""
    place = _scale(low, 1.0, 4, width - 4)
    said = f"{score:.4f}" if interval is None else f"{score:.4f}, from {interval[0]:.4f} to {interval[1]:.4f}"
    marks = [
        _tag("line", x1=4, x2=width - 4, y1=8, y2=8, class_="grid"),
        *(_tag("line", x1=place(at), x2=place(at), y1=4, y2=12, class_="grid") for at in (low, 0.5, 1.0)),
    ]
    if interval is not None:
        ends = [place(min(1.0, max(low, end))) for end in interval]
        marks.append(_tag("line", x1=ends[0], x2=max(ends[1], ends[0] + 1), y1=8, y2=8, class_="s0 wide"))
    marks.append(_tag("circle", cx=place(min(1.0, max(low, score))), cy=8, r=3.5, class_="s0"))
    return _picture(width, 16, said, marks, "bar-row")


def histogram(values: Sequence[float], said: str, low: float = 0.0, bins: int = 20) -> Markup:
    """How many values lie in each part of low to 1; the last part holds 1."""
    width, height, bottom = 360, 108, 86
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (1.0 - low) * bins)))] += 1
    place, most = _scale(low, 1.0, 8, width - 8), max([*counts, 1])
    step = (1.0 - low) / bins
    bars = []
    for number, count in enumerate(counts):
        start, tall = low + number * step, (bottom - 6) * count / most
        title = f"{start:.2f} to {start + step:.2f}: {count}"
        left = place(start)
        bar = {"x": left + 0.75, "y": bottom - tall, "width": place(start + step) - left - 1.5, "height": tall}
        bars.append(_tag("rect", _tag("title", title), class_="bar", **bar))
    bars.append(_tag("line", x1=8, x2=width - 8, y1=bottom, y2=bottom, class_="axis"))
    for at in _ticks(low, 1.0, 5):
        bars.append(_tag("text", f"{at:g}", x=place(at), y=bottom + 16, text_anchor="middle"))
    return _picture(width, height, said, bars)


def lines(series: Sequence[Line], x_label: str, y_label: str, said: str) -> Markup:
    """Curves over a logarithmic x, a tick at each x that occurs, with whiskers where points have intervals."""
    points = [point for line in series for point in line.points]
    frame = _Frame.around(points, x_label, y_label, log=True, width=420, height=250, right=16)
    marks = frame.axes(sorted({point.x for point in points}))
    for line in series:
        spots = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in line.points)
        marks.append(_tag("polyline", points=spots, class_=f"path s{line.points[0].series % SERIES}"))
        marks += [mark for point in line.points for mark in frame.mark(point)]
    return _picture(frame.width, frame.height, said, marks)


def curves(series: Sequence[Line], x_label: str, y_label: str, said: str) -> Markup:
    """Values on the way of something, as of a training: lines over a plain x. A line's first point gives its colour, and its
    name stands at its last one where there are several lines."""
    points = [point for line in series for point in line.points]
    right = 90 if len(series) > 1 else 20
    frame = _Frame.around(points, x_label, y_label, log=False, width=560, height=300, right=right)
    marks = frame.axes()
    for line in series:
        spots = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in line.points)
        style, last = f"path s{line.points[0].series % SERIES}", line.points[-1]
        marks.append(_tag("polyline", _tag("title", line.name), points=spots, class_=style))
        if len(series) > 1:
            marks.append(_tag("text", line.name, x=frame.x(last.x) + 6, y=frame.y(last.y) + 4, class_="name"))
    return _picture(frame.width, frame.height, said, marks)


def scatter(points: Sequence[Point], x_label: str, y_label: str, said: str) -> Markup:
    """Points over a logarithmic x; a dashed line joins those of the front."""
    frame = _Frame.around(points, x_label, y_label, log=True, width=500, height=330, right=20)
    marks = frame.axes()
    front = sorted((point for point in points if point.front), key=lambda point: point.x)
    steps = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in front)
    marks.append(_tag("polyline", points=steps, class_="front"))
    labels = _Labels(frame, points)
    for point in points:
        marks += frame.mark(point)
    for point in front:
        marks += labels.beside(point)
    return _picture(frame.width, frame.height, said, marks)


def forest(rows: Sequence[Point], x_label: str, said: str) -> Markup:
    """A row a point: its name, x as a mark and (low, high) as a line, against 0. front: whether the mark is filled."""
    width, left, right, step, top = 640, 190, 84, 26, 8
    ends = [end for row in rows for end in (row.low, row.high, row.x) if end is not None]
    reach = 1.08 * max([abs(end) for end in ends] + [1e-6])
    place = _scale(-reach, reach, left, width - right)
    bottom = top + step * len(rows)
    marks = [_tag("line", x1=place(at), x2=place(at), y1=top, y2=bottom, class_="grid") for at in _ticks(-reach, reach)]
    marks.append(_tag("line", x1=place(0), x2=place(0), y1=top, y2=bottom, class_="axis"))
    for number, row in enumerate(rows):
        y = top + step * (number + 0.5)
        short = row.name if len(row.name) <= 26 else f"{row.name[:25]}…"
        parts = [_tag("title", f"{row.name}: {row.label}")]
        if row.low is not None and row.high is not None:
            parts.append(_tag("line", x1=place(row.low), x2=place(row.high), y1=y, y2=y, class_="s0 whisker"))
        form = "s0" if row.front else "s0 hollow"
        parts.append(_tag("circle", cx=place(row.x), cy=y, r=4.5, class_=form))
        parts.append(_tag("text", short, x=left - 12, y=y + 4, text_anchor="end", class_="name"))
        parts.append(_tag("text", f"{row.x:+.4f}", x=width - right + 12, y=y + 4))
        marks.append(_tag("g", *parts))
    for at in _ticks(-reach, reach):
        marks.append(_tag("text", f"{at:+g}" if at else "0", x=place(at), y=bottom + 16, text_anchor="middle"))
    marks.append(_tag("text", x_label, x=place(0), y=bottom + 36, text_anchor="middle"))
    return _picture(width, bottom + 44, said, marks)


def sample(series: int, form: int) -> Markup:
    """A mark for a legend."""
    mark = _form(form % SERIES, 7, 7, f"s{series % SERIES}")
    return _tag("svg", mark, viewBox="0 0 14 14", width=14, height=14, aria_hidden="true", class_="plot")


def alone(picture: Markup) -> str:
    """The picture as a file of its own, with its styles."""
    head, end, rest = str(picture).partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return f"{head}{end}<style>{STYLE}{MARKS}</style>{rest}"


# --- the pieces -------------------------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """Axes and what lies between them; y grows upwards in values and downwards in the picture."""

    bounds: tuple[float, float, float, float]  # x from, to, y from, to
    labels: tuple[str, str]
    log: bool
    width: int
    height: int
    right: int
    left: int = 58
    top: int = 12
    bottom: int = 44

    @classmethod
    def around(cls, points: Sequence[Point], x_label: str, y_label: str, **sizes: Any) -> _Frame:
        ys = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
        xs = [point.x for point in points]
        room = 0.08 * (max(ys) - min(ys)) or 0.01
        low, high = min(xs), max(xs)
        if sizes["log"]:
            apart = (high / low) ** 0.06 if high > low else 1.2
            low, high = low / apart, high * apart
        elif low == high:
            low, high = low - 0.5, high + 0.5
        return cls((low, high, min(ys) - room, max(ys) + room), (x_label, y_label), **sizes)

    def x(self, value: float) -> float:
        start, end, at = (math.log(one) if self.log else one for one in (*self.bounds[:2], value))
        return self.left + (at - start) / (end - start) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        start, end = self.bounds[2:]
        return self.height - self.bottom - (value - start) / (end - start) * (self.height - self.bottom - self.top)

    def axes(self, x_ticks: Sequence[float] = ()) -> list[Markup]:
        floor, side = self.height - self.bottom, self.width - self.right
        marks = []
        for at in _ticks(*self.bounds[2:]):
            y = self.y(at)
            marks.append(_tag("line", x1=self.left, x2=side, y1=y, y2=y, class_="grid"))
            marks.append(_tag("text", _number(at), x=self.left - 8, y=y + 4, text_anchor="end"))
        for at in x_ticks or (_log_ticks if self.log else _ticks)(*self.bounds[:2]):
            marks.append(_tag("line", x1=self.x(at), x2=self.x(at), y1=floor, y2=floor + 4, class_="axis"))
            marks.append(_tag("text", _number(at), x=self.x(at), y=floor + 17, text_anchor="middle"))
        marks.append(_tag("line", x1=self.left, x2=side, y1=floor, y2=floor, class_="axis"))
        middle = (self.top + floor) / 2
        marks.append(_tag("text", self.labels[0], x=(self.left + side) / 2, y=self.height - 6, text_anchor="middle"))
        turned = {"transform": f"rotate(-90 12 {middle:.1f})"}
        marks.append(_tag("text", self.labels[1], x=12, y=middle, text_anchor="middle", **turned))
        return marks

    def mark(self, point: Point) -> list[Markup]:
        x, y, series = self.x(point.x), self.y(point.y), point.series % SERIES
        style = f"s{series}" if point.front else f"s{series} hollow"
        parts = [_tag("title", point.name)]
        form = point.form % SERIES
        if point.low is not None and point.high is not None:
            ends = {"y1": self.y(point.low), "y2": self.y(point.high)}
            parts.append(_tag("line", x1=x, x2=x, class_=f"s{series} whisker thin", **ends))
        return [_tag("g", *parts, _form(form, x, y, style))]


def _form(form: int, x: float, y: float, style: str) -> Markup:
    if form == 0:
        return _tag("circle", cx=x, cy=y, r=4.5, class_=style)
    offsets = {
        1: ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        2: ((0, -5.5), (5, 4), (-5, 4)),
        3: ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
        4: ((0, 5.5), (5, -4), (-5, -4)),
        5: ((-5.5, -2), (5.5, -2), (5.5, 2), (-5.5, 2)),
    }[form]
    return _tag("polygon", points=" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in offsets), class_=style)


class _Labels:
    """Names beside points, left out where one would lie upon another."""

    def __init__(self, frame: _Frame, points: Sequence[Point]) -> None:
        self.frame = frame
        spots = [(frame.x(point.x), frame.y(point.y)) for point in points]
        self.taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]

    def beside(self, point: Point) -> list[Markup]:
        x, y, wide = self.frame.x(point.x), self.frame.y(point.y), 6.2 * len(point.label)
        for anchor, left, up in (("start", x + 9, y + 14), ("end", x - 9 - wide, y - 8), ("start", x + 9, y - 8)):
            box = (left, up - 10, left + wide, up + 3)
            inside = box[0] >= self.frame.left and box[2] <= self.frame.width and box[1] >= 0
            if inside and not any(_overlap(box, other) for other in self.taken):
                self.taken.append(box)
                at = left if anchor == "start" else left + wide
                return [_tag("text", point.label, x=at, y=up, text_anchor=anchor, class_="name")]
        return []


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scale(start: float, end: float, left: float, right: float) -> Any:
    return lambda value: left + (value - start) / (end - start) * (right - left)


def _ticks(start: float, end: float, about: int = 5) -> list[float]:
    """Round numbers between the ends, some `about` of them."""
    rough = (end - start) / about
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(times for times in (1, 2, 5, 10) if times * power >= rough)
    first = math.ceil(start / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(end / step + 1e-9) + 1)]


def _log_ticks(start: float, end: float) -> list[float]:
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(end)) + 1)
    for times in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [factor * 10.0**power for power in powers for factor in times if start <= factor * 10.0**power <= end]
        if len(ticks) >= 3:
            break
    return ticks if len(ticks) >= 3 else _ticks(start, end)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _picture(width: int, height: int, said: str, marks: Sequence[Markup], kind: str = "") -> Markup:
    style = f"plot {kind}".strip()
    return _tag(
        "svg",
        *marks,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=said,
        class_=style,
    )


def _tag(name: str, *inside: Any, **attributes: Any) -> Markup:
    """An element; texts and values are escaped. class_="a" is class="a", text_anchor="a" is text-anchor="a"."""
    from markupsafe import Markup, escape

    said: Mapping[str, Any] = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    shown = "".join(f' {key}="{escape(_short(value))}"' for key, value in said.items())
    return Markup(f"<{name}{shown}>{''.join(escape(part) for part in inside)}</{name}>")


def _short(value: Any) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
