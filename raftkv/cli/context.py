"""``raftkv context``: names for clusters, and which of them commands speak to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from raftkv.api.credentials import check_credentials
from raftkv.cli import contexts
from raftkv.cli.common import checked, output_option, print_json, tls_options, token_option
from raftkv.cli.console import Section, display
from raftkv.cli.contexts import Context, Contexts
from raftkv.client.routing import parse_endpoints

_NAME: Final = click.argument("name")


@click.group("context")
def context() -> None:
    """Give clusters names, and choose which of them `raftkv` and `raftkv-admin` speak to."""


@context.command("add")
@_NAME
@click.argument("endpoints", callback=checked(parse_endpoints), metavar="HOST:PORT,...")
@tls_options
@token_option(callback=checked(check_credentials))
def add(name: str, endpoints: str, token: str | None, **files: str | None) -> None:
    """Remember the cluster of these nodes as NAME, in the place of an earlier one. The first one is used from then on.

    \b
    Example:
      raftkv context add prod kv-1:7401,kv-2:7401 --tls-ca ca.pem
    """
    given = {key.removeprefix("tls_"): value for key, value in files.items() if value is not None}
    for key in ("ca", "cert", "key"):
        if key in given:
            given[key] = str(Path(given[key]).absolute())
    new = Context(endpoints, token=token, **given)
    new.tls()
    known = contexts.load()
    contexts.save(Contexts({**known.named, name: new}, known.current or name))
    click.echo(f"added {name}" if known.current else f"added {name}, and used from now on")


@context.command("use")
@_NAME
def use(name: str) -> None:
    """Let commands speak to NAME if they name no cluster.

    \b
    Example:
      raftkv context use prod
    """
    known = contexts.load()
    known.get(name)
    contexts.save(replace(known, current=name))
    click.echo(f"using {name}")


@context.command("list")
@output_option
def list_all(output: str) -> None:
    """List the clusters that have names.

    \b
    Example:
      raftkv context list
    """
    known = contexts.load()
    if output == "json":
        print_json({"current": known.current or None, "contexts": {n: c.told() for n, c in known.named.items()}})
        return
    rows = [("*" if name == known.current else "", name, *_row(one.told())) for name, one in known.named.items()]
    display([Section("", ("", "name", "endpoints", "tls", "user"), rows)])


def _row(one: Mapping[str, Any]) -> tuple[str, str, str]:
    encrypted = "no" if one["ca"] is None else "with a certificate" if one["cert"] else "yes"
    return one["endpoints"], encrypted, "yes" if one["token"] else "no"


@context.command("show")
@click.argument("name", required=False)
@output_option
def show(name: str | None, output: str) -> None:
    """Show how NAME is reached, by default the cluster in use.

    \b
    Example:
      raftkv context show prod
    """
    known = contexts.load()
    chosen = name or known.current
    found = {"name": chosen, **known.get(chosen).told()}
    if output == "json":
        print_json(found)
        return
    display([Section("", ("", ""), [(key, value) for key, value in found.items() if value is not None])])


@context.command("remove")
@_NAME
def remove(name: str) -> None:
    """Forget NAME. Its files stay.

    \b
    Example:
      raftkv context remove prod
    """
    known = contexts.load()
    known.get(name)
    rest = {other: one for other, one in known.named.items() if other != name}
    contexts.save(Contexts(rest, "" if known.current == name else known.current))
    click.echo(f"removed {name}")
