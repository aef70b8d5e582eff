"""A comparison for people: tables for a terminal, a page of Markdown with the same, and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from bench import charts, disturbance, machine
from bench.markdown import escaped, table
from bench.peers.contestants import WORTHS
from bench.results import RESULT
from raftkv.cli.console import print_table

MARKDOWN: Final = "compare.md"
_HEADINGS: Final = ("who", "through", "ops/s", "p50 ms", "p99 ms", "raftkv is", "of ceiling", "promises")
_PROMISES: Final = {
    "write": "an acknowledged write is",
    "process": "lost when the process is killed",
    "machine": "lost when its machine fails",
    "majority": "lost when most machines fail",
    "consistency": "answers are",
}
_CALL_HEADINGS: Final = ("who", "through", "{}/s", "MB/s", "p50 ms", "p99 ms", "raftkv is", "promises")
_NUMBERS: Final = range(2, 7)
_PROMISED: Final = "What each promises"
_SAID: Final = "How it was measured"


def write(folder: Path, result: dict[str, Any]) -> None:
    """``result.json``, ``compare.md`` and the pictures, over what an earlier call left there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    for name, title, rows in _by_workload(result):
        charts.compared(title, rows, folder / _picture_of(name))
    title, rows = _first(result)
    charts.worth(title, rows, WORTHS, folder / _picture_of("worth"))
    (folder / MARKDOWN).write_text(markdown(result), encoding="utf-8")


def markdown(result: dict[str, Any]) -> str:
    """A page, with the pictures that :func:`write` draws."""
    titles = [title for _, title, _ in _by_workload(result)]
    links = " · ".join(f"[{title}](#{_anchor(title)})" for title in (*titles, _PROMISED, _SAID))
    title, rows = _first(result)
    parts = ["# raftkv beside other stores", headline(result), links]
    parts += [f"![{title}]({_picture_of('worth')})"] if any(charts.has_worth(row) for row in rows) else []
    for (title, heading, lines, numbers), name in zip(_tables(result), (*_names(result), None), strict=True):
        parts.append(f"## {title}")
        if name is not None and any("per_second" in row for row in result["rows"] if row["workload"] == name):
            parts.append(f"![{title}]({_picture_of(name)})")
        parts.append(table(heading, lines, numbers))
    parts += [f"## {_SAID}", "\n".join(f"- {escaped(line)}" for line in remarks(result))]
    return "\n\n".join(parts) + "\n"


def _names(result: dict[str, Any]) -> list[str]:
    return [name for name, _, _ in _by_workload(result)]


def _first(result: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """What the picture of writes is called, and its rows: those of the first workload."""
    first = result["workloads"][0]
    title = f"Writes by what an acknowledgement is worth: {first['what']}"
    return title, [row for row in result["rows"] if row["workload"] == first["name"]]


def _picture_of(name: str) -> str:
    return f"compare-{name or 'tools'}.svg"


def headline(result: dict[str, Any]) -> str:
    """What the default cluster did in the first workload, beside etcd: a sentence or two."""
    first = result["workloads"][0]["name"]
    own = {charts.asked(row): row for row in _measured(result, first, "raftkv-groups")}
    go = [row for row in _measured(result, first, "etcd") if row["kind"] == "go" and not row["note"]]
    other = {charts.asked(row): row for row in go}
    said = []
    for op, row in own.items():
        what, call = (charts.counted(row), f"{op}, ") if charts.is_call(row) else (op, "")
        text = f"{row['per_second']:,.0f} {what}/s ({call}p99 {row['latency_ms']['p99']:.1f} ms)"
        if op in other:
            text += f", {row['per_second'] / other[op]['per_second']:.1f} times etcd's through its Go client"
        said.append(text)
    return f"**{'; '.join(said)}.**" if said else "Nothing to compare with was measured."


def _measured(result: dict[str, Any], workload: str, contestant: str) -> list[dict[str, Any]]:
    wanted = (workload, contestant)
    return [one for one in result["rows"] if (one["workload"], one["contestant"]) == wanted and one.get("operations")]


def _anchor(title: str) -> str:
    """As GitHub makes one of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def show(console: Console, result: dict[str, Any]) -> None:
    """Print everything."""
    for title, heading, lines, numbers in _tables(result):
        made = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        for at, name in enumerate(heading):
            number = at in numbers
            made.add_column(name, justify="right" if number else "left", no_wrap=number)
        for line in lines:
            made.add_row(*line)
        print_table(console, made)
    for remark in remarks(result):
        console.print(remark)


def remarks(result: dict[str, Any]) -> list[str]:
    """What was reached, what was not measured, and what else there is to say."""
    lines = [
        f"{'reached' if one['reached'] else 'MISSED'}: {one['what']}: {one['found']:.2f} times"
        for one in result["targets"]
    ]
    for row in result["rows"]:
        if row.get("errors"):
            lines.append(
                f"failed operations: {_who(row)}: " + ", ".join(f"{n:,} {kind}" for kind, n in row["errors"].items())
            )
    options, synced = result["options"], result["beside"]["fsync"]
    lines.append(
        f"{options['keys']:,} keys of {options['key_size']} bytes, values of {options['value_size']}, closed loop, "
        f"medians of {options['rounds']} round(s) of {options['seconds']:g} s, one contestant's servers at a time"
    )
    told = [(_who(row), row) for row in result["rows"] if "others" in row]
    lines += [disturbed] if (disturbed := disturbance.remark(told)) else []
    lines.append(
        f"beside it: fsync {synced['per_second']:,.0f}/s, p50 {synced['p50_ms']:.2f} ms, p99 {synced['p99_ms']:.2f} ms"
    )
    if "machine" in result:
        lines.append(machine.line(result["machine"]))
    return lines


def _who(row: dict[str, Any]) -> str:
    return f"{row['contestant']} {charts.asked(row)}, {row['client']}"


def _tables(result: dict[str, Any]) -> Iterable[tuple[str, Sequence[str], list[list[str]], range]]:
    versions = {one["name"]: one["version"] for one in result["contestants"]}
    record = result["options"]["key_size"] + result["options"]["value_size"]
    for _, title, rows in _by_workload(result):
        heading: Sequence[str] = _HEADINGS
        if charts.is_call(rows[0]):
            heading = tuple(one.format(charts.counted(rows[0])) for one in _CALL_HEADINGS)
        yield title, heading, [_cells(row, versions, record) for row in rows], _NUMBERS
    promises = [
        [f"{one['name']}: {one['what']}", *(one["promise"][name] for name in _PROMISES)]
        for one in result["contestants"]
    ]
    yield _PROMISED, ("who", *_PROMISES.values()), promises, range(0)


def _cells(row: dict[str, Any], versions: dict[str, str], record: int) -> list[str]:
    """``record``: bytes of a key and its value."""
    who = f"{row['contestant']} {versions[row['contestant']]} {charts.asked(row)}".replace("  ", " ")
    through = f"{row['client']}; {row['note']}" if row["note"] else row["client"]
    if "per_second" not in row:
        return [who, through, "", "", "", "", "", row["problem"] or "not measured"]
    latency = row["latency_ms"]
    by, share = row["raftkv_by"], row["of_echo"]
    rate = f"{row['per_second']:,.0f}"
    latencies = ["-" if latency[name] is None else f"{latency[name]:.2f}" for name in ("p50", "p99")]
    ratio = "-" if by is None else f"{by:.2f}x"
    if charts.is_call(row):
        moved = f"{row['per_second'] * record / 1e6:,.1f}" if row["size"] else "-"
        return [who, through, rate, moved, *latencies, ratio, row["promise"]]
    return [who, through, rate, *latencies, ratio, "-" if share is None else f"{share:.0%}", row["promise"]]


def _by_workload(result: dict[str, Any]) -> Iterable[tuple[str, str, list[dict[str, Any]]]]:
    """Name, title and rows, gets before sets; tools with loads of their own last, under the name ""."""
    titles = {one["name"]: one["what"] for one in result["workloads"]}
    for name, title in (titles | {"": "tools with a load of their own"}).items():
        rows = [row for row in result["rows"] if row["workload"] == name]
        if rows:
            yield name, title, sorted(rows, key=lambda row: (row["op"], row["size"]))
