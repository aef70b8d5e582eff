"""``raftkv serve`` and ``raftkv health``: one node in the foreground, and its pulse."""

from __future__ import annotations

import click

from raftkv.cli.common import Exit, complain
from raftkv.node.config import load_config, split_address

_CONFIG = click.option(
    "--config", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="The node's configuration (TOML)."
)


@click.command()
@_CONFIG
def serve(config: str) -> int:
    """Run one node until SIGTERM or SIGINT.

    On SIGTERM the node hands its leaderships over, finishes what is in flight and exits 0.
    """
    checked = load_config(config)
    from raftkv.node.main import serve as serve_node

    return serve_node(checked)


@click.command()
@_CONFIG
@click.option(
    "--ready", is_flag=True, help="Also demand that the node serves: it knows a leader of each of its groups."
)
def health(config: str, ready: bool) -> int:
    """Ask the node of FILE, on this machine, whether it lives. Exits with 3 if it does not.

    Without --ready this depends on the node alone, so that a supervisor does not restart nodes because others are away.
    """
    from raftkv.cli.local import probe

    host, port = split_address(load_config(config).node.listen)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    status = probe(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", timeout=3.0)
    if status is None:
        complain("the node does not answer")
        return Exit.UNREACHABLE
    if ready and not status.ready:
        complain("the node answers but does not serve")
        return Exit.UNREACHABLE
    click.echo("ready" if status.ready else "alive")
    return Exit.DONE
