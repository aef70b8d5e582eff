"""``raftkv serve``: one node in the foreground."""

from __future__ import annotations

import click

from raftkv.node.config import load_config


@click.command()
@click.option(
    "--config", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="The node's configuration (TOML)."
)
def serve(config: str) -> int:
    """Run one node until SIGTERM or SIGINT.

    On SIGTERM the node hands its leaderships over, finishes what is in flight and exits 0.
    """
    checked = load_config(config)
    from raftkv.node.main import serve as serve_node

    return serve_node(checked)
