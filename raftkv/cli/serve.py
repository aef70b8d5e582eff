"""``raftkv serve`` and ``raftkv health``: one node in the foreground, and its pulse."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec.structs import replace

from raftkv.addresses import parse_address, parse_listen_address
from raftkv.cli.common import Exit, checked, complain
from raftkv.cli.parameters import FilePath, LaterDefault
from raftkv.client.routing import parse_endpoints
from raftkv.errors import ConfigError
from raftkv.node import signals

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raftkv.client.tls import TLS
    from raftkv.node.config import NodeConfig

_FILE = FilePath()


@click.command()
@click.option("--config", type=_FILE, metavar="FILE", help="The node's configuration (TOML).")
@click.option(
    "--join",
    callback=checked(parse_endpoints),
    metavar="HOST:PORT,...",
    help="Join the cluster of these nodes instead; any of them is enough.",
)
@click.option(
    "--data-dir",
    type=FilePath(folder=True),
    metavar="DIR",
    help="With --join: the new node's folder; it gets raftkv.toml, the node's configuration.",
)
@click.option(
    "--address",
    callback=checked(parse_address),
    metavar="HOST:PORT",
    help="With --join: where clients reach this node.",
)
@click.option(
    "--peer-address",
    cls=LaterDefault,
    shown="100 above the port of --address",
    callback=checked(parse_address),
    metavar="HOST:PORT",
    help="With --join: where the other nodes reach it.",
)
@click.option(
    "--listen",
    cls=LaterDefault,
    shown="--address",
    callback=checked(parse_listen_address),
    metavar="HOST:PORT",
    help="With --join: where it listens for clients.",
)
@click.option(
    "--peer-listen",
    cls=LaterDefault,
    shown="--peer-address",
    callback=checked(parse_listen_address),
    metavar="HOST:PORT",
    help="With --join: where it listens for nodes.",
)
@click.option(
    "--secret-file",
    type=_FILE,
    metavar="FILE",
    help="With --join: holds the cluster's secret, which nodes prove to each other.",
)
@click.option(
    "--tls-ca", type=_FILE, metavar="FILE", help="With --join: TLS, with the CAs (PEM) that vouch for all nodes."
)
@click.option(
    "--tls-cert",
    type=_FILE,
    metavar="FILE",
    help="With --join and --tls-ca: the node's certificate, which may be made once it has its id.",
)
@click.option("--tls-key", type=_FILE, metavar="FILE", help="With --join and --tls-ca: the key of --tls-cert.")
@click.option("--token", metavar="TOKEN", help="With --join: lets one node join; `raftkv-admin node add` prints it.")
@click.option("--token-file", type=_FILE, metavar="FILE", help="With --join: holds the token.")
@click.option("--insecure", is_flag=True, help="Let other machines reach the node although nothing is encrypted.")
@click.option(
    "--log-file",
    type=_FILE,
    metavar="FILE",
    help="Log there, not to stderr; rotated as the configuration says, reopened on SIGHUP.",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Lines for people, or one JSON object a line.")
def serve(
    config: Path | None,
    join: str | None,
    data_dir: Path | None,
    address: str | None,
    peer_address: str | None,
    listen: str | None,
    peer_listen: str | None,
    secret_file: Path | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    token: str | None,
    token_file: Path | None,
    insecure: bool,
    log_file: Path | None,
    log_format: str | None,
) -> int:
    """Run one node in the foreground: that of a configuration, or a new one that joins a running cluster.

    On SIGTERM or SIGINT the node transfers its leaderships, finishes what is in flight and exits 0; on SIGHUP it
    reopens its log and reloads its configuration. The same command with --join starts a node that has joined before.
    Options come before variables such as RAFTKV_NODE_LOG_LEVEL, and these before what is in the file.

    \b
    Example:
      raftkv serve --config node.toml
    """
    # Before what takes time to import.
    signals.ignore_strays()
    places = (address, peer_address, listen, peer_listen)
    if (config is None) == (join is None):
        raise click.UsageError("give either --config or --join")
    if join is None and (data_dir is not None or any((*places, secret_file, tls_ca, tls_cert, tls_key))):
        raise click.UsageError("--data-dir, secret, TLS and addresses go with --join; with --config, the file has them")
    if (join is None and (token or token_file)) or (token and token_file):
        raise click.UsageError("--token or --token-file, one of them, goes with --join")
    if len({tls_ca is None, tls_cert is None, tls_key is None}) > 1:
        raise click.UsageError("TLS needs all of --tls-ca, --tls-cert and --tls-key")
    if join is not None and data_dir is None:
        raise click.UsageError("--join needs --data-dir")
    _import_node()
    from raftkv.node.config import load_config
    from raftkv.node.main import serve as serve_node

    files = {"secret_file": secret_file, "ca_file": tls_ca, "cert_file": tls_cert, "key_file": tls_key}
    security: dict[str, Any] = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    if insecure:
        security["insecure"] = True
    if config is not None:
        settings, source = load_config(config), config
    else:
        settings, source = _joined(join or "", data_dir or Path(), security, token or token_file, *places)

    logging = {} if log_file is None else {"log_file": str(log_file)}
    if log_format is not None:
        logging["log_format"] = log_format

    def chosen(read: NodeConfig) -> NodeConfig:
        return _with(read, logging, security)

    return serve_node(chosen(settings), lambda: chosen(read_again(source)))


def _import_node() -> None:
    """Import what a node needs. It is no garbage: to look for some in it is a tenth of the time that a start takes."""
    gc.disable()
    try:
        import raftkv.node.main  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()


def read_again(source: Path) -> NodeConfig:
    """The configuration of a node that runs already. Raises ConfigError."""
    from raftkv.node.config import load_config

    if not source.is_file():
        # A pipe would make the node wait for whoever writes to it.
        raise ConfigError(f"{source}: there is no such file any more")
    return load_config(source)


def _with(config: NodeConfig, node: Mapping[str, Any], security: Mapping[str, Any]) -> NodeConfig:
    """``config``, but for what was given on the command line."""
    if "secret_file" in security:
        security = {**security, "secret": None}
    return replace(config, node=replace(config.node, **node), security=replace(config.security, **security))


def _own(security: Mapping[str, Any]) -> dict[str, Any]:
    """What a new node's configuration says: with TLS it asks clients for certificates, until somebody changes that."""
    return {**security, "client_certs": True} if "ca_file" in security else dict(security)


def _asking(security: Mapping[str, Any]) -> TLS | None:
    """How to ask to join. Who has an id has a certificate, and a client of the cluster may have lent its own."""
    if "ca_file" not in security:
        return None
    from raftkv.client.tls import TLS

    cert, key = security["cert_file"], security["key_file"]
    there = Path(cert).exists() and Path(key).exists()
    return TLS(security["ca_file"], cert, key) if there else TLS(security["ca_file"])


def _joined(
    endpoints: str, folder: Path, security: Mapping[str, Any], token: str | Path | None, *places: str | None
) -> tuple[NodeConfig, Path]:
    """The configuration of a node that has joined, and its file."""
    from raftkv.local.joining import CONFIG, Places
    from raftkv.local.joining import join as join_cluster

    file = folder / CONFIG
    before = file.exists()
    if before or token is None:
        token = ""
    elif isinstance(token, Path):
        token = _read_token(token)
    config = join_cluster(
        endpoints, folder, Places(*places), security=_own(security), tls=_asking(security), token=token
    )
    if not before:
        complain(f"joined cluster {config.cluster.id} as node {config.node.id}; configuration: {file}")
    return config, file


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token-file {path}: cannot read it: {getattr(error, 'strerror', None) or error}") from None


@click.command()
@click.option("--config", required=True, type=_FILE, metavar="FILE", help="The node's configuration (TOML).")
@click.option("--ready", is_flag=True, help="Check that it serves too: it knows a leader of each of its groups.")
def health(config: Path, ready: bool) -> int:
    """Check that the local node, the one of FILE, is alive. Exits with 3 if it is not.

    Without --ready this depends on the node alone, so that a supervisor does not restart nodes because others are away.

    \b
    Example:
      raftkv health --config node.toml --ready
    """
    from raftkv.local.status import own_tls, pulse
    from raftkv.node.config import load_config

    settings = load_config(config)
    address = parse_listen_address(settings.node.listen)
    if address.wildcard:
        address = address._replace(host="::1" if ":" in address.host else "127.0.0.1")
    serves = pulse(str(address), timeout=3.0, tls=own_tls(settings))
    if serves is None:
        complain("the node does not answer")
        return Exit.UNREACHABLE
    if ready and not serves:
        complain("the node answers but does not serve")
        return Exit.UNREACHABLE
    click.echo("ready" if serves else "alive")
    return Exit.DONE
