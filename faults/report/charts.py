"""The charts of a run, as plotly takes them: plain objects. Pure.

A colour that begins with two dashes is a variable of the page's style sheet; the page puts in what it stands for in a
light or a dark room. All texts are escaped here, as plotly takes some HTML in texts.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from faults.check.history import OPEN_END, Kind, Operation, Outcome
from faults.report.journal import Recorded
from faults.report.stats import CLIENT_KINDS, RecordedFault, Spread, client_kind, end_of, number

SHOWN: Final = 20_000
"""Successful operations in the timeline, at most. All others are always shown."""

_SLOWEST: Final = 2_000
"""Of those, how many are the slowest ones; the rest are picked evenly."""

_BUCKETS: Final = 120
_WIDTHS: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_LONGEST_TEXT: Final = 180
_LONGEST_LABEL: Final = 18
_GROUP_COLOURS: Final = 7
_LETTER: Final = 0.007
"""Width of a letter, as a part of a chart's width."""

_DOWN: Final = {"killed": "killed", "paused": "paused", "stopped": "stopped", "starts": "starting"}
_UP: Final = {"ready", "goes on"}

_OUTCOMES: Final = {
    Outcome.OK: ("ok", "--ok", "circle"),
    Outcome.REFUSED: ("refused", "--refused", "triangle-up"),
    Outcome.UNKNOWN: ("unknown", "--unknown", "x"),
}


@dataclass(frozen=True, slots=True)
class Chart:
    """``name``: of the element that it is drawn into. ``caption``: how to read it. ``data``, ``layout``: plotly's."""

    name: str
    title: str
    caption: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def charts(recorded: Recorded, faults: Sequence[RecordedFault]) -> list[Chart]:
    """All charts of a run. Their horizontal axes are the same time."""
    end = max(end_of(recorded), 0.001)
    drawn = [_clients(recorded, faults, end), _nodes(recorded, faults, end)]
    if any(fault.gap for fault in faults):
        drawn.append(_gaps(faults, end))
    drawn += [_latency(recorded, faults, end), _throughput(recorded, faults, end)]
    return [replace(one, data=[trace for trace in one.data if trace["x"]]) for one in drawn]


def escaped(text: str, longest: int = _LONGEST_TEXT) -> str:
    """``text`` so that plotly shows it as it is, cut if it is long."""
    return html.escape(text if len(text) <= longest else f"{text[:longest]}…", quote=False)


def label(fault: RecordedFault) -> str:
    """What a fault is called in charts; the table of faults has the same numbers."""
    return f"#{fault.number} {fault.kind}"


# -- what clients did


def thinned(operations: Sequence[Operation], most: int = SHOWN) -> list[Operation]:
    """All that are not ok, and at most ``most`` of the others: the slowest ones, and an even pick of the rest."""
    good = [one for one in operations if one.outcome is Outcome.OK]
    if len(good) <= most:
        return list(operations)
    by_time = sorted(good, key=lambda one: one.began - one.answered)
    slowest = min(_SLOWEST, most // 2)
    kept = {one.number for one in by_time[:slowest]}
    rest = [one for one in good if one.number not in kept]
    left = most - slowest
    kept |= {rest[at * len(rest) // left].number for at in range(left)}
    return [one for one in operations if one.outcome is not Outcome.OK or one.number in kept]


def _clients(recorded: Recorded, faults: Sequence[RecordedFault], end: float) -> Chart:
    operations = recorded.history.operations
    clients = sorted({one.client for one in operations}, key=_client_order)
    rows = {client: row for row, client in enumerate(clients)}
    shown = thinned(operations)
    data = []
    for outcome, (name, colour, symbol) in _OUTCOMES.items():
        of = [one for one in shown if _outcome(one) is outcome]
        data.append(
            {
                "type": "scattergl",
                "mode": "markers",
                "name": f"{name} ({sum(_outcome(one) is outcome for one in operations):,})",
                "x": [round(one.began, 4) for one in of],
                "y": [rows[one.client] for one in of],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(min(one.answered, end) - one.began, 4) for one in of],
                    "arrayminus": [0] * len(of),
                    "width": 0,
                    "thickness": 2,
                    "color": colour,
                },
                "text": [escaped(one.describe()) for one in of],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": colour, "symbol": symbol, "size": 5 if outcome is Outcome.OK else 9},
            }
        )
    caption = (
        "A mark where a client asked, a line until it was answered, a row for each client; p0, p1 and so on probe."
    )
    if len(shown) < len(operations):
        caption += (
            f" Thinned out: {len(shown):,} of {len(operations):,} operations are drawn. Every one that was refused or"
            " has an unknown outcome is among them, the slowest of the others, and an even pick of the rest."
        )
    layout = _rows_layout(end, [escaped(one, _LONGEST_LABEL) for one in clients], 17)
    return Chart("clients", "What clients did", caption, data, _shaded(layout, faults, end))


def _client_order(client: str) -> tuple[int, list[tuple[int, str]]]:
    """Kinds apart, numbers by their value."""
    parts = [(int(one or 0), text) for one, text in re.findall(r"(\d*)(\D*)", client) if one or text]
    return CLIENT_KINDS.index(client_kind(client)), parts


def _outcome(one: Operation) -> Outcome:
    return Outcome.UNKNOWN if one.outcome is Outcome.OPEN else one.outcome


# -- what happened to nodes


def _nodes(recorded: Recorded, faults: Sequence[RecordedFault], end: float) -> Chart:
    leaders = recorded.of("leader")
    run = recorded.of("run")
    nodes = set(range(1, 1 + max((int(one.get("nodes") or 0) for one in run), default=0)))
    nodes |= {int(one["node"]) for one in [*recorded.of("node"), *leaders] if one["node"]}
    nodes |= {node for fault in faults for node in fault.targets}
    names = ["phase"]
    if recorded.of("action"):
        names.append("operators")
    if any(not fault.targets for fault in faults):
        names.append("cluster")
    above = len(names)
    names += [f"node {node}" for node in sorted(nodes)]
    rows = {node: above + at for at, node in enumerate(sorted(nodes))}
    groups = sorted({int(one["group"]) for one in leaders})
    layout = _rows_layout(end, names, max(34, 20 + 8 * len(groups)))
    layout["uniformtext"] = {"mode": "hide", "minsize": 10}  # names of phases that do not fit
    data = [
        _bars("phases", "--phase", _phases(recorded, end), width=0.6),
        _bars("node down", "--down", _downtimes(recorded, rows, end), width=0.9, pattern="/"),
        *_fault_bars(faults, rows, names, end),
        *(_leader(leaders, group, at, len(groups), rows, end) for at, group in enumerate(groups)),
    ]
    if "operators" in names:
        data.append(_actions(recorded, names.index("operators")))
    caption = (
        "Faults and the time that nodes were down, over thin lines that tell which node leads which group; within a"
        " row the groups have the order of the legend. Group 0 is the meta group."
    )
    return Chart("nodes", "What happened to the nodes", caption, data, layout)


@dataclass(frozen=True, slots=True)
class _Bar:
    row: int
    began: float
    ended: float
    text: str
    hover: str


def _bars(name: str, colour: str, bars: Iterable[_Bar], *, width: float, pattern: str = "") -> dict[str, Any]:
    drawn = list(bars)
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "base": [round(one.began, 4) for one in drawn],
        "x": [round(max(one.ended - one.began, 0.0), 4) for one in drawn],
        "y": [one.row for one in drawn],
        "width": width,
        "text": [escaped(one.text, 40) for one in drawn],
        "textposition": "inside",
        "insidetextanchor": "start",
        "constraintext": "inside",
        "textangle": 0,
        "cliponaxis": True,
        "textfont": {"color": "--ink"},
        "hovertext": [escaped(one.hover) for one in drawn],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "marker": {
            "color": colour,
            "line": {"color": f"{colour}-edge", "width": 1},
            "pattern": {"shape": pattern, "fgcolor": f"{colour}-edge", "bgcolor": colour, "size": 5},
        },
    }


def _phases(recorded: Recorded, end: float) -> list[_Bar]:
    began = [(float(one["t"]), str(one.get("name", ""))) for one in recorded.of("phase")]
    return [
        _Bar(0, at, until, name, f"{name}: {_span(at, until)}")
        for (at, name), (until, _) in pairwise([*began, (end, "")])
    ]


def _fault_bars(
    faults: Sequence[RecordedFault], rows: dict[int, int], names: list[str], end: float
) -> list[dict[str, Any]]:
    kinds: dict[bool, list[_Bar]] = {True: [], False: []}
    labels: list[tuple[float, float, str]] = []
    for fault in faults:
        until = end if fault.healed is None else fault.healed
        hover = f"{label(fault)}, {_span(fault.began, until)}: {fault.how}"
        places = [rows[node] for node in fault.targets] or [names.index("cluster")]
        kinds[fault.confirmed is True] += [_Bar(row, fault.began, until, "", hover) for row in places]
        labels += [(fault.began, row - 0.3, label(fault)) for row in places]
    return [
        _bars("fault, seen to take effect", "--fault", kinds[True], width=0.9),
        _bars("fault, effect not seen", "--unseen", kinds[False], width=0.9, pattern="x"),
        {
            "type": "scatter",
            "mode": "text",
            "x": [round(began, 4) for began, _, _ in labels],
            "y": [height for _, height, _ in labels],
            "text": [f" {escaped(text, 40)}" for text in _uncrowded(labels, end)],
            "textposition": "middle right",
            "textfont": {"color": "--ink"},
            "hoverinfo": "skip",
            "showlegend": False,
        },
    ]


def _uncrowded(labels: Sequence[tuple[float, float, str]], end: float) -> list[str]:
    """Their texts; of one that would run into the next one in its row, only the number."""
    found = []
    for at, height, text in labels:
        until = at + len(text) * _LETTER * end
        crowded = any(at <= other < until for other, row, name in labels if row == height and name != text)
        found.append(text.split()[0] if crowded else text)
    return found


def _downtimes(recorded: Recorded, rows: dict[int, int], end: float) -> list[_Bar]:
    found, since = [], dict[int, tuple[float, str]]()
    for one in recorded.of("node"):
        node, state, at = int(one["node"]), str(one.get("state", "")), float(one["t"])
        if state in _DOWN:
            since.setdefault(node, (at, _DOWN[state]))
        elif state in _UP and node in since:
            began, how = since.pop(node)
            found.append((node, began, at, how))
    found += [(node, began, end, how) for node, (began, how) in since.items()]
    return [
        _Bar(rows[node], began, until, "", f"node {node} {how}, {_span(began, until)}")
        for node, began, until, how in found
        if node in rows
    ]


def _leader(
    leaders: Sequence[dict[str, Any]], group: int, at: int, groups: int, rows: dict[int, int], end: float
) -> dict[str, Any]:
    of = [one for one in leaders if int(one["group"]) == group]
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for one, until in zip(of, [*(float(one["t"]) for one in of[1:]), end], strict=True):
        if one["node"]:
            # Below the names of faults.
            height = rows[int(one["node"])] - 0.08 + 0.5 * (at + 0.5) / groups
            told = f"node {one['node']} leads group {group} in term {one.get('term', '?')}, {_span(one['t'], until)}"
            x += [round(float(one["t"]), 4), round(until, 4), None]
            y += [height, height, None]
            text += [escaped(told)] * 3
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"group {group} led",
        "x": x,
        "y": y,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {
            "color": f"--group-{at % _GROUP_COLOURS}",
            "width": 3,
            "dash": ("solid", "dot", "dash")[at // _GROUP_COLOURS % 3],
        },
    }


def _actions(recorded: Recorded, row: int) -> dict[str, Any]:
    actions = recorded.of("action")
    colours = {name: colour for name, colour, _ in _OUTCOMES.values()} | {"done": "--ok"}
    symbols = {name: symbol for name, _, symbol in _OUTCOMES.values()} | {"done": "circle"}
    outcomes = [str(one.get("outcome", "unknown")) for one in actions]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "operators' actions",
        "x": [round(float(one["t"]), 4) for one in actions],
        "y": [row] * len(actions),
        "text": [
            escaped(f"{one['t']:.2f} s: {one.get('what', '')}, {one.get('outcome', '')}: {one.get('detail', '')}")
            for one in actions
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": 9,
            "color": [colours.get(one, "--unknown") for one in outcomes],
            "symbol": [symbols.get(one, "x") for one in outcomes],
        },
    }


# -- gaps, latency, throughput


def _gaps(faults: Sequence[RecordedFault], end: float) -> Chart:
    hurting, recovering, waiting = [], [], []
    for row, fault in enumerate(faults):
        healed = end if fault.healed is None else fault.healed
        hurting.append(_Bar(row, fault.began, healed, "", f"{label(fault)}, {_span(fault.began, healed)}: {fault.how}"))
        if fault.healed is not None:
            until = end if fault.recovered is None else fault.recovered
            how = "healthy again" if fault.healthy else "not healthy"
            recovering.append(_Bar(row, healed, until, "", f"{label(fault)}: {how} after {until - healed:.2f} s"))
        if fault.gap is not None:
            gap = fault.gap
            told = f"{label(fault)}: {gap.seconds:.2f} s without a write to {gap.key}, {_span(gap.began, gap.ended)}"
            waiting.append(_Bar(row, gap.began, gap.ended, f"{number(gap.seconds)} s", told))
    data = [
        _bars("fault", "--fault", hurting, width=0.8),
        _bars("until healthy again", "--recovery", recovering, width=0.8),
        {
            **_bars("no write acknowledged", "--gap", waiting, width=0.3),
            "textposition": "outside",
            "constraintext": "none",
        },
    ]
    layout = _rows_layout(end, [escaped(label(fault), _LONGEST_LABEL) for fault in faults], 24)
    caption = (
        "A row for each fault: how long it lasted, how long the cluster then took to be healthy, and the longest time"
        " between two acknowledged writes to one probe's key meanwhile, in seconds."
    )
    return Chart("gaps", "How long writes were not available", caption, data, layout)


def _latency(recorded: Recorded, faults: Sequence[RecordedFault], end: float) -> Chart:
    width = bucket_width(end)
    data = []
    for name, colour, wanted in (("gets", "--gets", False), ("writes", "--writes", True)):
        buckets: dict[int, list[float]] = defaultdict(list)
        for one in recorded.history.operations:
            if one.outcome is Outcome.OK and (one.kind is not Kind.GET) == wanted:
                buckets[int(one.answered / width)].append((one.answered - one.began) * 1000)
        spreads = [Spread.of(buckets.get(at, ())) for at in range(int(end / width) + 1)]
        for percentile, dash, of in (("p50", "solid", _p50), ("p99", "dot", _p99)):
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": f"{name} {percentile}",
                    "x": [round((at + 0.5) * width, 4) for at in range(len(spreads))],
                    "y": [None if (value := of(one)) is None else round(value, 3) for one in spreads],
                    "hovertemplate": f"%{{x:.2f}} s: {name} {percentile} %{{y:,.1f}} ms<extra></extra>",
                    "line": {"color": colour, "dash": dash, "width": 2},
                    "marker": {"size": 3},
                }
            )
    layout = _layout(end, 300, {"type": "log", "title": {"text": "ms"}, "exponentformat": "none", "dtick": 1})
    caption = f"Of acknowledged operations, in steps of {width:g} s by the time of the answer. Faults are shaded."
    return Chart("latency", "Latency", caption, data, _shaded(layout, faults, end))


def _p50(spread: Spread) -> float | None:
    return spread.p50


def _p99(spread: Spread) -> float | None:
    return spread.p99


def _throughput(recorded: Recorded, faults: Sequence[RecordedFault], end: float) -> Chart:
    width = bucket_width(end)
    counts: dict[Outcome, list[int]] = {outcome: [0] * (int(end / width) + 1) for outcome in _OUTCOMES}
    for one in recorded.history.operations:
        at = one.began if one.answered == OPEN_END else one.answered
        counts[_outcome(one)][int(at / width)] += 1
    data = [
        {
            "type": "bar",
            "name": name,
            "x": [round((at + 0.5) * width, 4) for at in range(len(counts[outcome]))],
            "y": [round(count / width, 2) for count in counts[outcome]],
            "width": width,
            "hovertemplate": f"%{{x:.2f}} s: %{{y:,.1f}} {name} a second<extra></extra>",
            "marker": {
                "color": colour,
                "line": {"width": 0},
                "pattern": {"shape": _PATTERNS[outcome], "size": 5, "fillmode": "overlay"},
            },
        }
        # What went wrong stands at the bottom, where little of it can be seen beside much that went right.
        for outcome, (name, colour, _) in reversed(_OUTCOMES.items())
    ]
    layout = _layout(end, 260, {"title": {"text": "operations/s"}, "rangemode": "tozero"}) | {"barmode": "stack"}
    caption = f"Answers a second of all clients, in steps of {width:g} s. Faults are shaded."
    return Chart("throughput", "Throughput", caption, data, _shaded(layout, faults, end))


_PATTERNS: Final = {Outcome.OK: "", Outcome.REFUSED: "/", Outcome.UNKNOWN: "x"}


def bucket_width(end: float) -> float:
    """Seconds of a bucket, a number that people like."""
    return next((width for width in _WIDTHS if end / width <= _BUCKETS), _WIDTHS[-1])


# -- layouts


def _span(began: float, ended: float) -> str:
    return f"{began:.2f} to {ended:.2f} s"


def _layout(end: float, height: int, y: dict[str, Any]) -> dict[str, Any]:
    axis = {"gridcolor": "--grid", "zeroline": False, "linecolor": "--line"}
    return {
        "height": height,
        # The same on the left for all, so that the times of all charts stand below each other.
        "margin": {"l": 120, "r": 12, "t": 10, "b": 30},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--ink"},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "font": {"color": "--ink"}, "align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "--quiet", "activecolor": "--ink"},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        "xaxis": {**axis, "range": [0, round(end, 3)], "ticksuffix": " s"},
        "yaxis": {**axis, "fixedrange": True, **y},
    }


def _rows_layout(end: float, names: Sequence[str], row: int) -> dict[str, Any]:
    """A row for each name, the first on top."""
    y: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": list(names),
        "range": [len(names) - 0.4, -0.6],
        "showgrid": True,
    }
    return _layout(end, 90 + row * max(len(names), 2), y) | {"barmode": "overlay", "bargap": 0}


def _shaded(layout: dict[str, Any], faults: Sequence[RecordedFault], end: float) -> dict[str, Any]:
    healed = [(fault, end if fault.healed is None else fault.healed) for fault in faults]
    hurting = [(fault.began, until) for fault, until in healed]
    recovering = [(since, end if fault.recovered is None else fault.recovered) for fault, since in healed]
    shades = ((hurting, "--fault-shade"), (recovering, "--recovery-shade"))
    shapes = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": round(began, 4),
            "x1": round(ended, 4),
            "y0": 0,
            "y1": 1,
            "fillcolor": colour,
            "line": {"width": 0},
            "layer": "below",
        }
        for spans, colour in shades
        for began, ended in _together(spans)
    ]
    return layout | {"shapes": shapes}


def _together(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The time that any of them covers; each part of it once, as shades would add up."""
    found: list[tuple[float, float]] = []
    for began, ended in sorted(spans):
        if found and began <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], ended)
        elif ended > began:
            found.append((began, ended))
    return found
