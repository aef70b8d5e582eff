"""Pictures as SVG that stand alone: light and dark as the reader prefers, text as text, no scripts.

Colours go by meaning, and lines and bars are labelled where they are, so that no legend has to be looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final, Literal

NAMESPACE: Final = "http://www.w3.org/2000/svg"
Colour = Literal["get", "set", "raftkv", "etcd", "valkey", "echo", "one", "two", "three", "four", "five", "six"]

_COLOURS: Final[dict[str, tuple[str, str]]] = {
    "ink": ("#1b2330", "#e6eaf0"),
    "quiet": ("#566173", "#a3adbb"),
    "grid": ("#e3e7ed", "#2b3340"),
    "paper": ("#ffffff", "#12161c"),
    "get": ("#0072b2", "#56b4e9"),
    "set": ("#c65200", "#ff9248"),
    "raftkv": ("#00805a", "#2fcf9f"),
    "etcd": ("#6a51a3", "#b8a4ee"),
    "valkey": ("#b8336a", "#ff7fb5"),
    "echo": ("#8a93a1", "#7b8696"),
    "one": ("#0072b2", "#56b4e9"),
    "two": ("#c65200", "#ff9248"),
    "three": ("#00805a", "#2fcf9f"),
    "four": ("#b8336a", "#ff7fb5"),
    "five": ("#8a6a00", "#f0b429"),
    "six": ("#6a51a3", "#b8a4ee"),
}
"""In light and in dark: those of raftkv, its peers, operations, and of what is only to be told apart."""
APART: Final[tuple[Colour, ...]] = ("one", "two", "three", "four", "five", "six")

_FONT: Final = 13.0
_WIDE: Final = 0.56
"""Width of a letter, about, by the size of the font."""
_BOLD: Final = 1.08
_PAGE: Final = 920.0
_STEP: Final = 15.0
"""Lines of text are at least so far apart."""
_DOTS: Final = 12
"""Points of a line up to which each is marked."""
_NEAR: Final = 40.0
_SHIFTED: Final = 3.0
_TINY: Final = 1e-9
_MANY: Final = 200.0
"""Values on a logarithmic axis that differ by more have ticks at powers of ten only."""


@dataclass(frozen=True, slots=True)
class Bar:
    """``note``: said behind its value, or in its place where there is none."""

    name: str
    value: float | None
    colour: Colour
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """``points``: (x, y), by x. ``dashed``: a second kind of the same colour."""

    name: str
    colour: Colour
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes. ``ticks``: of x, with their text; none = round numbers. y begins at 0, unless it is
    logarithmic; ``unit``: behind its numbers.
    """

    title: str
    across: str
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]] = ()
    log_x: bool = False
    log_y: bool = False
    unit: str = ""


@dataclass(slots=True)
class _Page:
    width: float
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start", colour: str = "ink") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}" fill="var(--{colour})">'
            f"{escape(text)}</text>"
        )

    def path(self, points: Sequence[tuple[float, float]], colour: str, css: str = "line") -> None:
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{drawn}" class="{css}" stroke="var(--{colour})"/>')

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--{colour})"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="2" '
            f'fill="var(--{colour})"/>'
        )

    def small_print(self, text: str, y: float) -> float:
        """Below ``y``; where it ends."""
        for line in wrapped(text, self.width - 40):
            y += 16
            self.text(20, y, line, "s", colour="quiet")
        return y

    def whole(self, title: str, height: float) -> str:
        light, dark = (";".join(f"--{name}:{two[at]}" for name, two in _COLOURS.items()) for at in (0, 1))
        style = (
            f".chart{{{light};font:{_FONT}px system-ui,-apple-system,'Segoe UI',sans-serif}}"
            f"@media (prefers-color-scheme:dark){{.chart{{{dark}}}}}"
            ".chart .h{font-size:17px;font-weight:600}.chart .b{font-weight:600}.chart .s{font-size:12px}"
            ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round}.chart .dash{fill:none;stroke-width:1.6;"
            "stroke-dasharray:5 4}.chart .grid{fill:none;stroke-width:1}"
        )
        return (
            f'<svg xmlns="{NAMESPACE}" class="chart" viewBox="0 0 {self.width:.0f} {height:.0f}" '
            f'width="{self.width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title><style>{style}</style>"
            f'<rect width="100%" height="100%" fill="var(--paper)"/>{"".join(self.parts)}</svg>\n'
        )


def bars(title: str, quantity: str, sections: Iterable[tuple[str, Sequence[Bar]]], beneath: str = "") -> str:
    """Bars from 0 on one scale, in ``sections`` with headings. ``quantity``: theirs; ``beneath``: small print."""
    several = [(name, some) for name, some in sections if some]
    everything = [bar for _, some in several for bar in some]
    page, body = _Page(_PAGE), _Page(_PAGE)
    left = 28 + max((_width(bar.name) for bar in everything), default=0.0)
    scale = _linear(max((bar.value or 0.0 for bar in everything), default=0.0))
    top = scale[-1]
    # As long as they can be with what is said behind them.
    room = min(
        (
            (_PAGE - left - 34 - _width(_value(bar) + bar.note)) / max((bar.value or 0.0) / top, 0.1)
            for bar in everything
        ),
        default=1.0,
    )
    room = max(_PAGE / 8, min(room, _PAGE - left - 30))
    page.text(20, 34, title, "h")
    page.text(20, 54, quantity, "s", colour="quiet")
    y = first = 74.0
    for name, some in several:
        body.text(20, y + 14, name, "b")
        y += 26
        for bar in some:
            body.text(left - 8, y + 14, bar.name, anchor="end")
            width = room * (bar.value or 0.0) / top
            if bar.value is not None:
                body.box(left, y + 2, width, 16, bar.colour)
                body.text(left + width + 6, y + 14, _value(bar), "b")
            behind = _width(_value(bar)) * _BOLD + 10 if bar.value is not None else 0.0
            body.text(left + width + 6 + behind, y + 14, bar.note, "s", colour="quiet")
            y += 22
        y += 10
    for tick in scale:
        x = left + room * tick / top
        page.path([(x, first), (x, y)], "grid", "grid")
        page.text(x, y + 16, short(tick), "s", "middle", "quiet")
    page.parts += body.parts
    y = page.small_print(beneath, y + 26)
    return page.whole(title, y + 18)


def _value(bar: Bar) -> str:
    return "" if bar.value is None else f"{bar.value:,.0f}"


def lines(title: str, panels: Sequence[Panel], beneath: str = "") -> str:
    """Panels beside each other, two in a row; each line is labelled at its end."""
    page = _Page(_PAGE)
    page.text(20, 34, title, "h")
    columns = min(2, len(panels))
    width, height, y = page.width / max(1, columns), 300.0, 50.0
    for at, panel in enumerate(panels):
        _panel(page, panel, (at % columns) * width, y + at // columns * height, width, height)
    y += math.ceil(len(panels) / max(1, columns)) * height
    return page.whole(title, page.small_print(beneath, y) + 18)


def _panel(page: _Page, panel: Panel, left: float, top: float, width: float, height: float) -> None:
    points = [point for line in panel.lines for point in line.points]
    if not points:
        return
    labels = max(_width(line.name) for line in panel.lines)
    x0, x1 = left + 64, left + width - labels - 26
    y0, y1 = top + height - 44, top + 34
    ticks_x = list(panel.ticks) or [(one, short(one)) for one in _ticks([x for x, _ in points], panel.log_x)]
    ticks_y = _ticks([y for _, y in points], panel.log_y)
    xs = _axis([*(one for one, _ in ticks_x), *(x for x, _ in points)], x0, x1, panel.log_x)
    ys = _axis([*ticks_y, *(y for _, y in points)], y0, y1, panel.log_y)
    page.text(left + 20, top + 20, panel.title, "b")
    for one in ticks_y:
        page.path([(x0, ys(one)), (x1, ys(one))], "grid", "grid")
        page.text(x0 - 8, ys(one) + 4, short(one) + panel.unit, "s", "end", "quiet")
    last = -math.inf
    for one, text in ticks_x:
        half = _width(text) / 2
        if xs(one) - half > last + 6:
            page.text(xs(one), y0 + 17, text, "s", "middle", "quiet")
            page.path([(xs(one), y0), (xs(one), y0 + 4)], "quiet", "grid")
            last = xs(one) + half
    page.text((x0 + x1) / 2, y0 + 34, panel.across, "s", "middle", "quiet")
    wanted = []
    for line in panel.lines:
        drawn = [(xs(x), ys(y)) for x, y in line.points]
        if not drawn:
            continue
        page.path(drawn, line.colour, "dash" if line.dashed else "line")
        if len(drawn) <= _DOTS:
            for x, y in drawn:
                page.dot(x, y, line.colour)
        wanted.append((drawn[-1], line))
    # Labels stand at the right edge, or where a line ends long before it; those that would overlap move apart.
    for at_edge in (True, False):
        some = [one for one in wanted if (one[0][0] > x1 - _NEAR) is at_edge]
        some.sort(key=lambda one: one[0][1])
        places = _apart([y for (_, y), _ in some], y1, y0)
        for ((x, y), line), place in zip(some, places, strict=True):
            beside = x1 + 10 if at_edge else x + 10
            if abs(place - y) > _SHIFTED or x < beside - 14:
                page.path([(x + 4, y), (beside - 4, place)], line.colour, "grid")
            page.text(beside, place + 4, line.name, "", colour=line.colour)


def _apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    places: list[float] = []
    for one in wanted:
        places.append(max(one, places[-1] + _STEP if places else top))
    limit = bottom
    for at in range(len(places) - 1, -1, -1):
        places[at] = min(places[at], limit)
        limit = places[at] - _STEP
    return places


def _axis(values: Sequence[float], start: float, end: float, log: bool) -> Callable[[float], float]:
    """Where a value lies between two ends of an axis that has room for all ``values``."""

    def of(value: float) -> float:
        return math.log10(max(value, _TINY)) if log else value

    low, high = of(min(values)), of(max(values))
    return lambda value: start + (of(value) - low) / (high - low or 1.0) * (end - start)


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    return _decades(min(values), max(values)) if log else _linear(max(values))


def _linear(most: float) -> list[float]:
    """From 0 to ``most`` or the next round number."""
    if most <= 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(most / 4))
    step *= next(one for one in (1, 2, 2.5, 5, 10) if most / (step * one) <= 5)
    return [step * at for at in range(math.ceil(most / step - 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    low, high = max(low, _TINY), max(high, _TINY)
    steps = (1, 2, 5) if high / low < _MANY else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = sorted(step * 10.0**power for power in powers for step in steps)
    first = max((one for one in every if one <= low * 1.0001), default=every[0])
    last = min((one for one in every if one >= high * 0.9999), default=every[-1])
    return [one for one in every if first <= one <= last]


def short(value: float) -> str:
    """A number as an axis has it: 0, 250, 1.5k, 20k, 3M."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def size(value: int) -> str:
    """A number of bytes as an axis has it: 16 B, 8 KiB, 1 MiB."""
    for factor, suffix in ((2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{value / factor:.3g} {suffix}"
    return f"{value} B"


def ticks(axis: str, values: Iterable[int]) -> list[tuple[float, str]]:
    """One for each value of ``axis``, whose name says whether they are bytes."""
    text = size if axis.startswith("bytes") else short
    return [(float(value), text(value)) for value in values]


def wrapped(text: str, width: float) -> list[str]:
    """``text`` in lines of at most so many pixels, in small print."""
    found: list[str] = []
    for word in text.split():
        if found and _width(f"{found[-1]} {word}") * 12 / _FONT <= width:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def _width(text: str) -> float:
    return len(text) * _FONT * _WIDE
