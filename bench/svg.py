"""Pictures as SVG that stand alone: light and dark as the reader prefers, text as text, no scripts.

Colours go by meaning, and lines and bars are labelled where they are, so that no legend has to be looked up.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

NAMESPACE: Final = "http://www.w3.org/2000/svg"
Colour = Literal["get", "set", "raftkv", "etcd", "valkey", "echo", "four", "five"]

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
    "four": ("#b8336b", "#ff7fb6"),
    "five": ("#8a6a00", "#f0b429"),
}
"""In light and in dark: those of raftkv, its peers, operations, and of what is only to be told apart. No two light ones
are equal, since they stand for the names until a picture is written."""
APART: Final[tuple[Colour, ...]] = ("get", "set", "raftkv", "four", "five", "etcd")

_WIDTH: Final = 9.2
_PANEL: Final = 3.2
"""Inches."""
_BAR: Final = 0.26
_HEADING: Final = 0.42
_LINE: Final = 13.0
"""Points between labels."""
_DOTS: Final = 12
"""Points of a line up to which each is marked."""
_MANY: Final = 200.0
"""Values on a logarithmic axis that differ by more have ticks at powers of ten only."""
_SMALL_PRINT: Final = 130
"""Characters in a line of it."""


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


def bars(title: str, quantity: str, sections: Iterable[tuple[str, Sequence[Bar]]], beneath: str = "") -> str:
    """Bars from 0 on one scale, in ``sections`` with headings. ``quantity``: theirs; ``beneath``: small print."""
    return written(title, bar_figure(title, quantity, sections, beneath))


def lines(title: str, panels: Sequence[Panel], beneath: str = "") -> str:
    """Panels beside each other, two in a row; each line is labelled at its end."""
    return written(title, line_figure(title, panels, beneath))


def bar_figure(title: str, quantity: str, sections: Iterable[tuple[str, Sequence[Bar]]], beneath: str = "") -> Figure:
    """What :func:`bars` writes."""
    with _style():
        return _bar_figure(title, quantity, sections, beneath)


def _bar_figure(title: str, quantity: str, sections: Iterable[tuple[str, Sequence[Bar]]], beneath: str) -> Figure:
    several = [(name, some) for name, some in sections if some]
    height = sum(_HEADING + _BAR * len(some) for _, some in several)
    figure = _figure(1.1 + height, title, beneath)
    panels = figure.subplots(
        len(several), 1, squeeze=False, sharex=True, height_ratios=[len(some) for _, some in several]
    )
    for (axes,), (name, some) in zip(panels, several, strict=True):
        axes.set_title(name, loc="left")
        # By place: two bars may have the same name.
        drawn = axes.barh(range(len(some)), [bar.value or 0.0 for bar in some], color=[_of(bar.colour) for bar in some])
        axes.bar_label(drawn, [_behind(bar) for bar in some], padding=4)
        axes.set_yticks(range(len(some)), [bar.name for bar in some])
        axes.tick_params(axis="y", labelcolor=_of("ink"))
        axes.set_ylim(len(some) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        _number(axes.xaxis)
    panels[-1][0].set_xlabel(quantity)
    return figure


def _behind(bar: Bar) -> str:
    value = "" if bar.value is None else f"{bar.value:,.0f}"
    return " · ".join(filter(None, (value, bar.note)))


def line_figure(title: str, panels: Sequence[Panel], beneath: str = "") -> Figure:
    """What :func:`lines` writes."""
    with _style():
        return _line_figure(title, panels, beneath)


def _line_figure(title: str, panels: Sequence[Panel], beneath: str) -> Figure:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = _figure(0.7 + _PANEL * rows, title, beneath)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _fill(axes, panel)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.draw_without_rendering()
    for axes in grid.flat:
        _part_labels(axes)
    return figure


def _fill(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left")
    axes.set_xlabel(panel.across)
    values = [y for line in panel.lines for _, y in line.points]
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    for line in panel.lines:
        if not line.points:
            continue
        at, up = zip(*line.points, strict=True)
        dots = "o" if len(at) <= _DOTS else ""
        axes.plot(at, up, color=_of(line.colour), linestyle="--" if line.dashed else "-", marker=dots)
        label = axes.annotate(line.name, (at[-1], up[-1]), (8, 0), textcoords="offset points", annotation_clip=False)
        label.set(color=_of(line.colour), va="center")
    if panel.ticks:
        axes.set_xticks([at for at, _ in panel.ticks], [text for _, text in panel.ticks])
        axes.minorticks_off()
    else:
        _number(axes.xaxis)
    if not panel.log_y:
        axes.set_ylim(bottom=0, top=None if any(values) else 1)
        _number(axes.yaxis, panel.unit)
    elif values:
        _powers(axes.yaxis, panel.unit, every=max(values) < _MANY * max(min(values), 1e-9))


def _part_labels(axes: Axes) -> None:
    """Move labels of lines that would lie on each other apart, within the height of the panel while there is room."""
    labels: list[Any] = sorted(axes.texts, key=lambda one: axes.transData.transform(one.xy)[1])
    points = 72 / axes.figure.dpi
    wanted = [axes.transData.transform(one.xy)[1] * points for one in labels]
    places: list[float] = []
    for one in wanted:
        places.append(max(one, places[-1] + _LINE) if places else one)
    limit = axes.bbox.y1 * points
    for at in reversed(range(len(places))):
        places[at] = min(places[at], limit)
        limit = places[at] - _LINE
    for label, at, place in zip(labels, wanted, places, strict=True):
        label.set_position((8, place - at))


def _figure(height: float, title: str, beneath: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height + 0.2 * (len(beneath) / _SMALL_PRINT)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    if beneath:
        figure.supxlabel("\n".join(textwrap.wrap(beneath, _SMALL_PRINT)), x=0.01, ha="left", color=_of("quiet"))
    return figure


def _number(axis: Axis, unit: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(lambda value, _: short(value) + unit)


def _powers(axis: Axis, unit: str, *, every: bool) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if every else (1.0,)))
    axis.set_major_formatter(lambda value, _: short(value) + unit)
    axis.set_minor_formatter(NullFormatter())


def _style() -> AbstractContextManager[None]:
    import matplotlib as mpl

    ink, quiet, grid, paper = (_of(name) for name in ("ink", "quiet", "grid", "paper"))
    return mpl.rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": "raftkv", "font.size": 9.0, "figure.titlesize": 13.0,
            "figure.titleweight": "bold", "figure.labelsize": 8.0, "axes.titlesize": 9.5,
            "axes.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
            "axes.spines.left": False, "axes.edgecolor": grid, "axes.grid": True, "axes.axisbelow": True,
            "axes.labelcolor": quiet, "axes.facecolor": paper, "figure.facecolor": paper, "savefig.facecolor": paper,
            "grid.color": grid, "text.color": ink, "xtick.color": quiet, "ytick.color": quiet, "xtick.major.size": 0.0,
            "ytick.major.size": 0.0, "xtick.minor.size": 0.0, "ytick.minor.size": 0.0, "lines.linewidth": 1.6,
            "lines.markersize": 4.0,
        }
    )  # fmt: skip


def _of(colour: str) -> str:
    return _COLOURS[colour][0]


def written(title: str, figure: Figure) -> str:
    """``figure`` as SVG whose colours are those of light or of dark."""
    file = io.StringIO()
    with _style():
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for name, (light, _) in _COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    light, dark = (";".join(f"--{name}:{two[at]}" for name, two in _COLOURS.items()) for at in (0, 1))
    style = f"<style>.chart{{{light}}}@media (prefers-color-scheme:dark){{.chart{{{dark}}}}}</style>"
    head = f'<svg class="chart" role="img" aria-label="{escape(title)}" '
    start = text.index(">") + 1
    return f"{head}{text[len('<svg ') : start]}<title>{escape(title)}</title>{style}{text[start:]}"


def short(value: float) -> str:
    """A number as an axis has it: 0, 0.25, 1.5k, 20k, 3M."""
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
