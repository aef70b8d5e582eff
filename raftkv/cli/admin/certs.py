"""``raftkv-admin cert``: a certificate authority, and certificates of nodes and clients."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from raftkv.cli.admin.common import command, emit
from raftkv.cli.parameters import FilePath
from raftkv.tls import TlsFiles

_DIR: Final = click.option(
    "--dir",
    "folder",
    type=FilePath(folder=True),
    default=Path("./certs"),
    show_default=True,
    metavar="DIR",
    help="Folder of the CA and of what it issues.",
)
_DAYS: Final = click.IntRange(1, 36500)


@click.group("cert")
def cert_command() -> None:
    """Make a certificate authority (CA), and certificates of nodes and clients."""


@command(cert_command, "init", asks=False)
@_DIR
@click.option("--days", type=_DAYS, default=3650, show_default=True, help="How long it is valid.")
def init(folder: Path, days: int) -> None:
    """Make a CA. Who has its key, ca.key, can be any node and any client: keep it away from nodes.

    \b
    Example:
      raftkv-admin cert init --dir certs
    """
    from raftkv.local.certificates import Authority

    files = Authority.create(folder, days=days).files("ca")
    emit({"ca": files.ca, "key": files.key}, lambda made: [f"CA   {made['ca']}", f"key  {made['key']}"])


@command(cert_command, "node", asks=False)
@click.argument("node", type=click.IntRange(1, 65535))
@click.option("--cluster", required=True, type=click.UUID, metavar="UUID", help="The cluster's id, `cluster.id`.")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Where clients reach it; may be given again.")
@_DIR
@click.option("--days", type=_DAYS, default=365, show_default=True, help="How long it is valid.")
def node(node: int, cluster: object, hosts: tuple[str, ...], folder: Path, days: int) -> None:
    """Make the certificate of NODE, in the place of an earlier one. A node that runs takes over changed files.

    \b
    Example:
      raftkv-admin cert node 3 --cluster 6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e --host kv-3.example
    """
    from raftkv.local.certificates import Authority

    _show(Authority.open(folder).node(str(cluster), node, hosts, days))


@command(cert_command, "client", asks=False)
@click.argument("name")
@_DIR
@click.option("--days", type=_DAYS, default=365, show_default=True, help="How long it is valid.")
def client(name: str, folder: Path, days: int) -> None:
    """Make the certificate of a client, in the place of an earlier one.

    \b
    Example:
      raftkv-admin cert client backups
    """
    from raftkv.local.certificates import Authority

    _show(Authority.open(folder).client(name, days))


def _show(files: TlsFiles) -> None:
    emit(
        {"ca": files.ca, "cert": files.cert, "key": files.key},
        lambda made: [f"CA           {made['ca']}", f"certificate  {made['cert']}", f"key          {made['key']}"],
    )
