"""A comparison for people: tables for a terminal, the same as Markdown, and a plot for each workload."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from bench import charts
from bench.markdown import escaped, table
from bench.results import RESULT
from raftkv.cli.console import print_table

MARKDOWN: Final = "compare.md"
_HEADINGS: Final = ("who", "through", "ops/s", "p50 ms", "p99 ms", "raftkv is", "of echo", "promises")
_PROMISES: Final = {
    "write": "an acknowledged write is",
    "process": "lost when the process is killed",
    "machine": "lost when its machine fails",
    "majority": "lost when most machines fail",
    "consistency": "answers are",
}
_OPS: Final = {"get": "GET", "set": "SET", "echo": "ceiling"}
_NUMBERS: Final = range(2, 7)


def write(folder: Path, result: dict[str, Any]) -> None:
    """``result.json``, ``compare.md`` and the plots, over what an earlier call left there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    (folder / MARKDOWN).write_text(markdown(result), encoding="utf-8")
    for name, title, rows in _by_workload(result):
        charts.compared(title, rows, folder / f"compare-{name or 'tools'}.png")


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


def markdown(result: dict[str, Any]) -> str:
    """To be pasted into a page."""
    parts = []
    for title, heading, lines, numbers in _tables(result):
        parts.append(f"{title}\n\n{table(heading, lines, numbers)}")
    parts.append("\n".join(f"- {escaped(line)}" for line in remarks(result)))
    return "\n\n".join(parts) + "\n"


def remarks(result: dict[str, Any]) -> list[str]:
    """What was reached, what was not measured, and what else there is to say."""
    lines = [
        f"{'reached' if one['reached'] else 'MISSED'}: {one['what']}: {one['found']:.2f} times"
        for one in result["targets"]
    ]
    for row in result["rows"]:
        who = f"{row['contestant']} {_OPS[row['op']]}, {row['client']}"
        if row.get("errors"):
            lines.append(
                f"failed operations: {who}: " + ", ".join(f"{n:,} {kind}" for kind, n in row["errors"].items())
            )
        if row.get("said"):
            lines.append(f"{who} says: {row['said']}")
    options, synced = result["options"], result["beside"]["fsync"]
    lines.append(
        f"{options['keys']:,} keys of {options['key_size']} bytes, values of {options['value_size']}, closed loop, "
        f"medians of {options['repeat']} round(s) of {options['seconds']:g} s, one contestant's servers at a time"
    )
    lines.append(
        f"beside it: fsync {synced['per_second']:,.0f}/s, p50 {synced['p50_ms']:.2f} ms, p99 {synced['p99_ms']:.2f} ms"
    )
    if "machine" in result:
        told = result["machine"]
        lines.append(f"{told['cores']} cores, {told['processor']}, Python {told['python']}, commit {told['commit']}")
    return lines


def _tables(result: dict[str, Any]) -> Iterable[tuple[str, Sequence[str], list[list[str]], range]]:
    versions = {one["name"]: one["version"] for one in result["contestants"]}
    for _, title, rows in _by_workload(result):
        yield title, _HEADINGS, [_cells(row, versions) for row in rows], _NUMBERS
    promises = [
        [f"{one['name']}: {one['what']}", *(one["promise"][name] for name in _PROMISES)]
        for one in result["contestants"]
    ]
    yield "What each promises", ("who", *_PROMISES.values()), promises, range(0)


def _cells(row: dict[str, Any], versions: dict[str, str]) -> list[str]:
    who = f"{row['contestant']} {versions[row['contestant']]} {_OPS[row['op']]}".replace("  ", " ")
    through = f"{row['client']}; {row['note']}" if row["note"] else row["client"]
    if "per_second" not in row:
        return [who, through, "", "", "", "", "", row["problem"] or "not measured"]
    latency = row["latency_ms"]
    by, share = row["raftkv_by"], row["of_echo"]
    return [
        who,
        through,
        f"{row['per_second']:,.0f}",
        *("-" if latency[name] is None else f"{latency[name]:.2f}" for name in ("p50", "p99")),
        "-" if by is None else f"{by:.2f}x",
        "-" if share is None else f"{share:.0%}",
        row["promise"],
    ]


def _by_workload(result: dict[str, Any]) -> Iterable[tuple[str, str, list[dict[str, Any]]]]:
    """Name, title and rows, gets before sets; tools with loads of their own last, under the name ""."""
    titles = {one["name"]: one["what"] for one in result["workloads"]}
    for name, title in (titles | {"": "tools with a load of their own"}).items():
        rows = [row for row in result["rows"] if row["workload"] == name]
        if rows:
            yield name, title, sorted(rows, key=lambda row: row["op"])
