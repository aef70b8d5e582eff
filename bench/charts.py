"""The pictures of a scenario and of a comparison, as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import svg
from bench.svg import Bar, Colour, Line, Panel

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
_LOAD: Final = ("workers", "rate")
"""Axes along which the load grows: throughput against latency says more than each by itself."""
_NINES: Final = (
    (1.0, "0%"), (2.0, "50%"), (10.0, "90%"), (100.0, "99%"), (1e3, "99.9%"), (1e4, "99.99%"), (1e5, "99.999%"),
)  # fmt: skip
_SPREAD: Final = 20.0
"""Values that differ by this factor are drawn on a logarithmic axis."""
_OPS: Final = {"get": "GET", "set": "SET"}
_CALLS: Final = {
    "put_many": ("put_many of {:,}", "records"),
    "txn": ("txn", "transactions"),
    "scan": ("scan of {:,}", "records"),
    "watch": ("watch by {:,}", "events"),
}
"""How many a call is of or for, and what its rate counts."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture as a file."""

    title: str
    path: Path


def draw(scenario: dict[str, Any], folder: Path) -> list[Plot]:
    """The pictures of ``scenario``, a member of ``result.json``, in ``folder``. Raises OSError."""
    name, axis = scenario["name"], scenario["axis"]
    rows = [row for row in scenario["rows"] if row["operations"]]
    if not rows:
        return []
    what = f"{name}: {scenario['what']}"
    drawn = [_save(folder / f"{name}-percentiles.svg", what, svg.lines(what, [_percentiles(rows)]))]
    along = [row for row in rows if axis in row]
    if axis and along:
        title = f"{name}: rate and latency along {_AXES[axis]}"
        drawn.append(_save(folder / f"{name}-along.svg", title, svg.lines(title, _along(along, axis))))
    if axis in _LOAD and along:
        title = f"{name}: latency against throughput"
        panel = Panel("ms", "operations per second", _latencies(along, "per_second"), log_y=True)
        drawn.append(_save(folder / f"{name}-throughput.svg", title, svg.lines(title, [panel])))
    return drawn


def compared(title: str, rows: list[dict[str, Any]], path: Path) -> Plot | None:
    """Rates of a comparison as bars, all operations on one scale. None if there is nothing to draw. Raises OSError."""
    measured = [row for row in rows if "per_second" in row]
    if not measured:
        return None
    sections = [
        (name, [_bar(row) for row in measured if asked(row) == name]) for name in dict.fromkeys(map(asked, measured))
    ]
    return _save(path, title, svg.bars(title, f"{counted(measured[0])} per second", sections))


def asked(row: dict[str, Any]) -> str:
    """The operation of a row of a comparison, and how many records or watchers it has."""
    return _CALLS[row["op"]][0].format(row["size"]) if is_call(row) else _OPS[row["op"]]


def counted(row: dict[str, Any]) -> str:
    """What the rate of a row of a comparison counts."""
    return _CALLS[row["op"]][1] if is_call(row) else "operations"


def is_call(row: dict[str, Any]) -> bool:
    """Whether a row of a comparison is of neither gets nor sets."""
    return row["op"] in _CALLS


def worth(title: str, rows: list[dict[str, Any]], order: Iterable[str], path: Path) -> Plot | None:
    """Writes per second by what an acknowledgement is worth, as ``order`` names it. As :func:`compared`."""
    writes = [row for row in rows if has_worth(row)]
    if not writes:
        return None
    sections = [
        (f"acknowledged: on {one}" if one != "memory" else "acknowledged: in memory", sorted(some, key=_slowest_last))
        for one in order
        if (some := [_bar(row) for row in writes if row["worth"] == one])
    ]
    return _save(
        path, title, svg.bars(title, "writes per second, by where a write is when it is acknowledged", sections)
    )


def has_worth(row: dict[str, Any]) -> bool:
    """Whether ``row`` is of writes of a store, and was measured."""
    return "per_second" in row and row["op"] == "set" and bool(row["worth"])


def _slowest_last(bar: Bar) -> float:
    return -(bar.value or 0.0)


def _bar(row: dict[str, Any]) -> Bar:
    name = f"{row['label']}: {row['client']}"
    p99 = row["latency_ms"]["p99"]
    notes = (row["note"], "" if p99 is None else f"p99 {p99:.3g} ms")
    return Bar(name, row["per_second"], store_of(row["contestant"]), "; ".join(filter(None, notes)))


def store_of(contestant: str) -> Colour:
    """The colour of a store: its kind counts, not how it was set up."""
    kind = contestant.partition("-")[0]
    return kind if kind in ("raftkv", "etcd", "valkey", "echo") else "get"  # type: ignore[return-value]


def _save(path: Path, title: str, picture: str) -> Plot:
    path.write_text(picture, encoding="utf-8")
    return Plot(title, path)


def _percentiles(rows: list[dict[str, Any]]) -> Panel:
    drawn = []
    for number, row in enumerate(rows):
        # 99% and 99.9% are as far apart as 90% and 99%, as is usual with HdrHistograms.
        points = [(1 / (1 - at / 100), value) for at, value in row["percentiles"]]
        drawn.append(Line(row["label"], _apart(row["op"], number, rows), points))
    last = max(1 / (1 - row["percentiles"][-1][0] / 100) for row in rows)
    ticks = [one for one in _NINES if one[0] <= max(last, 10)]
    return Panel("ms", "percentile of the operations", drawn, ticks, log_x=True, log_y=True)


def _along(rows: list[dict[str, Any]], axis: str) -> list[Panel]:
    values = sorted({row[axis] for row in rows})
    log = values[-1] >= _SPREAD * max(values[0], 1)
    ticks = [] if axis == "rate" else svg.ticks(_AXES[axis], values)
    rates = [
        Line(_name(op), _colour(op, number), [(row[axis], row["per_second"]) for row in some])
        for number, op, some in _by_op(rows)
    ]
    return [
        Panel("operations per second", _AXES[axis], rates, ticks, log_x=log),
        Panel("ms", _AXES[axis], _latencies(rows, axis), ticks, log_x=log, log_y=True),
    ]


def _latencies(rows: list[dict[str, Any]], axis: str) -> list[Line]:
    return [
        Line(
            f"{_name(op)} {name}",
            _colour(op, number),
            sorted((row[axis], row["latency_ms"][name]) for row in some),
            dashed=name == "p50",
        )
        for number, op, some in _by_op(rows)
        for name in ("p50", "p99")
    ]


def _by_op(rows: list[dict[str, Any]]) -> Iterable[tuple[int, str, list[dict[str, Any]]]]:
    """A number, an operation, its rows."""
    for number, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
        yield number, op, [row for row in rows if row["op"] == op]


def _apart(op: str, number: int, rows: list[dict[str, Any]]) -> Colour:
    """By operation where there are both; else the lines are only to be told apart."""
    ops = {row["op"] for row in rows}
    return _colour(op, number) if len(ops) > 1 else svg.APART[number % len(svg.APART)]


def _name(op: str) -> str:
    return _OPS.get(op, op)


def _colour(op: str, number: int) -> Colour:
    return op if op in _OPS else svg.APART[number % len(svg.APART)]  # type: ignore[return-value]
