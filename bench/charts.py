"""Plots of a scenario: latency by percentile, along what its cases differ by, and throughput against latency."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI: Final = 110
_AXES: Final = {
    "clients": "clients (connections)",
    "groups": "shard groups",
    "key_size": "bytes of a key",
    "value_size": "bytes of a value",
    "keys": "records",
    "workers": "workers",
    "processes": "generator processes",
    "rate": "operations that arrive per second",
}
_LEGEND: Final = 6
"""Lines whose names fit into the plot."""
_LOAD: Final = ("workers", "rate")
"""Axes along which the load grows: throughput against latency says more than each by itself."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot as a file."""

    title: str
    path: Path


def draw(scenario: dict[str, Any], folder: Path) -> list[Plot]:
    """The plots of ``scenario``, a member of ``result.json``, as PNG in ``folder``. Raises OSError."""
    name, axis = scenario["name"], scenario["axis"]
    rows = [row for row in scenario["rows"] if row["operations"]]
    if not rows:
        return []
    drawn = [_save(folder / f"{name}-percentiles.png", f"{name}: latency by percentile", rows, _percentiles)]
    lines = [row for row in rows if axis in row]
    if axis and lines:
        title = f"{name}: rate and latency along {_AXES[axis]}"
        drawn.append(_save(folder / f"{name}-along.png", title, lines, lambda figure, some: _along(figure, some, axis)))
    if axis in _LOAD:
        title = f"{name}: throughput against latency"
        drawn.append(_save(folder / f"{name}-throughput.png", title, lines, _throughput))
    return drawn


def compared(title: str, rows: list[dict[str, Any]], path: Path) -> Plot | None:
    """Rates of a comparison as bars, one panel for each operation. None if there is nothing to draw. Raises OSError."""
    measured = [row for row in rows if "per_second" in row]
    return _save(path, title, measured, _bars) if measured else None


def _bars(figure: Figure, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter

    colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(row["contestant"] for row in rows))}
    groups = list(_by_op(rows))
    figure.set_figheight(1.5 + 0.4 * len(rows))
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(some) for _, _, some in groups])
    for (axes,), (_, op, some) in zip(panels, groups, strict=True):
        names = [", ".join(filter(None, (row["contestant"], row["client"], row["note"]))) for row in some]
        values = [row["per_second"] for row in some]
        # By place: two rows may have the same name.
        drawn = axes.barh(range(len(some)), values, color=[colors[row["contestant"]] for row in some])
        axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=3)
        axes.set_yticks(range(len(some)), names)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_title(f"{op}: operations per second", loc="left", fontsize="medium")


def _save(
    path: Path, title: str, rows: list[dict[str, Any]], fill: Callable[[Figure, list[dict[str, Any]]], None]
) -> Plot:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    fill(figure, rows)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)
    return Plot(title, path)


def _percentiles(figure: Figure, rows: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    for row in rows:
        # 99% and 99.9% are as far apart as 90% and 99%, as is usual with HdrHistograms.
        left = [1 / (1 - at / 100) for at, _ in row["percentiles"]]
        axes.plot(left, [value for _, value in row["percentiles"]], label=row["label"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    nines = [(1, "0%"), (2, "50%"), (10, "90%"), (100, "99%"), (1e3, "99.9%"), (1e4, "99.99%"), (1e5, "99.999%")]
    last = max(1 / (1 - row["percentiles"][-1][0] / 100) for row in rows)
    shown = [one for one in nines if one[0] <= max(last, 10)]
    axes.set_xticks([at for at, _ in shown], [text for _, text in shown])
    axes.minorticks_off()
    _finish(axes, "percentile", "ms")
    if len(rows) > _LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _along(figure: Figure, rows: list[dict[str, Any]], axis: str) -> None:
    rate, latency = figure.subplots(1, 2)
    for color, op, some in _by_op(rows):
        at = [row[axis] for row in some]
        rate.plot(at, [row["per_second"] for row in some], color=color, marker="o", label=op)
        _latencies(latency, color, op, at, some)
    values = sorted({row[axis] for row in rows})
    for axes, label in ((rate, "operations per second"), (latency, "ms")):
        if values[-1] >= 20 * values[0]:
            axes.set_xscale("log")
        if axis != "rate":
            axes.set_xticks(values, [f"{value:,}" for value in values], rotation=30)
            axes.minorticks_off()
        axes.set_ylim(bottom=0)
        _finish(axes, _AXES[axis], label)


def _throughput(figure: Figure, rows: list[dict[str, Any]]) -> None:
    axes = figure.subplots()
    for color, op, some in _by_op(rows):
        _latencies(axes, color, op, [row["per_second"] for row in some], some)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    _finish(axes, "operations per second", "ms")


def _latencies(axes: Axes, color: str, op: str, at: list[float], rows: list[dict[str, Any]]) -> None:
    for name, style in (("p50", ":"), ("p99", "-")):
        values = [row["latency_ms"][name] for row in rows]
        axes.plot(at, values, style, color=color, marker="o", label=f"{op} {name}")


def _by_op(rows: list[dict[str, Any]]) -> Iterable[tuple[str, str, list[dict[str, Any]]]]:
    """A colour, an operation, its rows."""
    for number, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        yield f"C{number}", op, [row for row in rows if row["op"] == op]


def _finish(axes: Axes, across: str, up: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(alpha=0.3)
    axes.legend()
