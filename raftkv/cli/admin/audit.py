"""``raftkv-admin audit tail``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import click

from raftkv.cli.admin.common import ask, command, complain, emit
from raftkv.cli.console import Section
from raftkv.cli.parameters import NODE
from raftkv.client.admin import AdminClient
from raftkv.errors import RaftKVError

_KNOWN = frozenset({"time", "node", "user", "address", "action", "arguments", "outcome"})


@click.group("audit")
def audit_command() -> None:
    """Who did what to the cluster, and who was refused."""


@command(audit_command, "tail")
@click.option(
    "-n", "--lines", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many of the latest lines."
)
@click.option("--node", type=NODE, help="Of this node only.")
def tail(lines: int, node: int | None) -> None:
    """Show the latest lines of the audit trails of all nodes, in the order of their times.

    Every node has a trail of what was asked of it, `audit.log` in its data folder.

    \b
    Example:
      raftkv-admin audit tail -n 100
    """

    async def main(client: AdminClient) -> tuple[list[dict[str, Any]], list[int]]:
        nodes = (await client.state_or_map()).map.nodes
        asked = [one for one in nodes if node in (None, one.id)]
        if not asked:
            raise click.UsageError(f"there is no node {node}")
        answers = await asyncio.gather(*(client.audit(one.address, lines) for one in asked), return_exceptions=True)
        found: list[dict[str, Any]] = []
        missing: list[int] = []
        for one, answer in zip(asked, answers, strict=True):
            if isinstance(answer, RaftKVError):
                if len(asked) == 1:
                    raise answer
                missing.append(one.id)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += [{"node": one.id, **_line(text)} for text in answer]
        found.sort(key=lambda line: line.get("time", ""))
        return found[-lines:], missing

    found, missing = ask(main)
    emit({"lines": found, "missing": missing}, _show)
    for gone in missing:
        complain(f"node {gone} does not answer: its lines are missing")


def _line(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    return line if isinstance(line, dict) else {"text": text}


def _show(report: dict[str, Any]) -> Iterator[Section | str]:
    rows = []
    for line in report["lines"]:
        more = line.get("arguments") or {name: value for name, value in line.items() if name not in _KNOWN}
        told = " ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in more.items()
        )
        rows.append(
            (
                line.get("time", "-"),
                line["node"],
                line.get("user") or "-",
                line.get("address") or "-",
                line.get("action", "-"),
                line.get("outcome", "-"),
                told,
            )
        )
    if rows:
        yield Section("", ("time", "node", "user", "address", "action", "outcome", "arguments"), rows)
    else:
        yield "the audit trails are empty"
