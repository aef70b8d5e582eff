"""Configuration of one node: a TOML file, checked completely before anything starts."""

from __future__ import annotations

import json
import os
import tomllib
import uuid
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field
from msgspec.structs import asdict, replace

from raftkv.addresses import canonical, parse_address, parse_listen_address
from raftkv.errors import ConfigError
from raftkv.node import variables
from raftkv.node.sections import Given, Section, read
from raftkv.peer.handshake import MIN_SECRET_BYTES

DEFAULT_SLOTS: Final = 1024
DEFAULT_GROUPS: Final = 3
DEFAULT_REPLICAS: Final = 3
MIN_SLOTS: Final = 256
MAX_SLOTS: Final = 16384
_FILES: Final = ("ca_file", "cert_file", "key_file", "secret_file")
"""Keys of the section ``security`` that are paths."""


def _reachable(value: str) -> str:
    parse_address(value)
    return value


def _listenable(value: str) -> str:
    parse_listen_address(value)
    return value


def _path(value: str) -> str:
    if "\0" in value:
        raise ValueError("a path holds no NUL")
    return value


def _uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a UUID") from None


def _secret(value: str) -> str:
    found = len(secret_bytes(value))
    if found < MIN_SECRET_BYTES:
        raise ValueError(f"the secret has {found} bytes, the least is {MIN_SECRET_BYTES}")
    return value


def secret_bytes(text: str) -> bytes:
    """The bytes of a secret, whatever they are, without spaces around them."""
    return text.encode(errors="surrogateescape").strip()


def _slots(value: int) -> int:
    if value & (value - 1):
        raise ValueError("must be a power of two")
    return value


Address = Annotated[str, _reachable]
ListenAddress = Annotated[str, _listenable]
FilePath = Annotated[str, Meta(min_length=1), _path]
NodeId = Annotated[int, Meta(ge=1, le=65535)]


class ClusterSection(Section, frozen=True):
    """What all nodes of a cluster agree on; fixed when the cluster is made."""

    id: Annotated[str, _uuid]
    slots: Annotated[int, Meta(ge=MIN_SLOTS, le=MAX_SLOTS), _slots] = DEFAULT_SLOTS
    groups: Annotated[int, Meta(ge=1, le=256)] = DEFAULT_GROUPS
    replicas: Annotated[int, Meta(ge=1, le=9)] = DEFAULT_REPLICAS


class NodeSection(Section, frozen=True):
    """This node. ``listen`` and ``peer_listen`` differ from the advertised addresses behind a NAT or in a container.

    ``metrics``: where it answers HTTP, metrics and probes; without it, nowhere. ``log_format``: for people or programs.
    ``log_file``: where it logs, if not to stderr; ``log_max_bytes``: size at which that file becomes the first of
    ``log_backups``, 0: never. ``memory``: of the process in bytes, above which groups with a replica here take no new
    data, 0: no limit, without it half of what there is. ``joined``: it came to a cluster that existed already, and
    never helps to form one.
    """

    id: NodeId
    data_dir: FilePath
    address: Address
    listen: ListenAddress
    peer_address: Address
    peer_listen: ListenAddress
    metrics: ListenAddress | None = None
    reads: Literal["lease", "quorum"] = "lease"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    log_file: FilePath | None = None
    log_max_bytes: Annotated[int, Meta(ge=0)] = 16 * 1024 * 1024
    log_backups: Annotated[int, Meta(ge=1, le=1000)] = 3
    memory: Annotated[int, Meta(ge=0)] | None = None
    joined: bool = False


class RaftSection(Section, frozen=True):
    """Times in seconds, sizes in bytes. The time-outs must be the same on all nodes: leases rest on them."""

    election_min: Annotated[float, Meta(ge=0.1, le=60)] = 0.5
    election_max: Annotated[float, Meta(ge=0.1, le=120)] = 0.9
    heartbeat: Annotated[float, Meta(ge=0.01, le=10)] = 0.1
    snapshot_bytes: Annotated[int, Meta(ge=64 * 1024)] = 32 * 1024 * 1024
    snapshot_share: Annotated[float, Meta(ge=0, le=100)] = 0.5

    def check(self) -> None:
        if self.election_max < 1.2 * self.election_min:
            raise ValueError("election_max must be at least 1.2 times election_min")
        if 3 * self.heartbeat >= self.election_min:
            raise ValueError("heartbeat must be less than a third of election_min")


class SecuritySection(Section, frozen=True):
    """How nodes prove who they are. ``ca_file``, ``cert_file``, ``key_file``: TLS, for all that the node says and
    hears. ``client_certs``: clients need certificates too. ``secret_file``: without TLS, holds a secret that all nodes
    of the cluster know; ``secret``: is it. ``insecure``: without TLS, this node may be reached from other machines all
    the same. ``auth_grace``: seconds for which users are served although the meta group's leader does not confirm who
    they are.
    """

    ca_file: FilePath | None = None
    cert_file: FilePath | None = None
    key_file: FilePath | None = None
    client_certs: bool = False
    secret_file: FilePath | None = None
    secret: Annotated[str, _secret] | None = None
    insecure: bool = False
    auth_grace: Annotated[float, Meta(ge=1, le=86400)] = 30.0

    def check(self) -> None:
        given = {"ca_file": self.ca_file, "cert_file": self.cert_file, "key_file": self.key_file}
        missing = [name for name, path in given.items() if path is None]
        if missing and (len(missing) < len(given) or self.client_certs):
            raise ValueError(f"{missing[0]} is missing: TLS needs CAs, a certificate and its key")
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("secret and secret_file: give one of them")
        if not missing and self.insecure:
            raise ValueError("insecure means nothing with TLS: leave it out")

    @property
    def tls(self) -> bool:
        """Whether all connections are encrypted."""
        return self.cert_file is not None


class PeerSection(Section, frozen=True):
    """One node of the cluster."""

    id: NodeId
    address: Address
    peer_address: Address


class NodeConfig(Section, frozen=True, kw_only=True):
    """Everything that one node needs to know to start.

    ``dial``: node id -> where this node reaches that node, if not at its ``peer_address``; also for nodes that do not
    exist yet.
    """

    cluster: ClusterSection
    node: NodeSection
    raft: RaftSection = RaftSection()
    security: SecuritySection = SecuritySection()
    dial: dict[NodeId, Address] = field(default_factory=dict)
    nodes: tuple[PeerSection, ...]

    def check(self) -> None:
        if not self.nodes:
            raise ValueError("nodes: there is none")
        ids = [peer.id for peer in self.nodes]
        _unique("nodes: id", ids)
        _unique("nodes: address", [canonical(a) for peer in self.nodes for a in (peer.address, peer.peer_address)])
        if self.node.id not in ids:
            raise ValueError(_no_entry(self.node.id))
        _apart(self.node)
        # A cluster that has formed may have fewer nodes than it once had.
        if self.cluster.replicas > len(ids) and not self.node.joined:
            raise ValueError(f"cluster.replicas: {self.cluster.replicas} replicas need more than {len(ids)} nodes")
        if self.cluster.groups > self.cluster.slots:
            raise ValueError("cluster.groups: more groups than slots")

    def dial_address(self, node: int, peer_address: str) -> str:
        """Where this node reaches ``node``, which the cluster knows at ``peer_address``."""
        return self.dial.get(node, peer_address)

    def dial_addresses(self) -> dict[int, str]:
        """Where this node reaches each of the others in ``nodes``: node id -> host:port."""
        others = (peer for peer in self.nodes if peer.id != self.node.id)
        return {peer.id: self.dial_address(peer.id, peer.peer_address) for peer in others}


def _apart(node: NodeSection) -> None:
    """Raises ValueError if the node is to listen twice at one address."""
    names = [name for name in ("listen", "peer_listen", "metrics") if getattr(node, name) is not None]
    for first, second in combinations(names, 2):
        address = getattr(node, second)
        if parse_listen_address(address).overlaps(parse_listen_address(getattr(node, first))):
            raise ValueError(f"node.{second}: {address} is node.{first} already")


def _no_entry(node: int) -> str:
    return f"nodes: there is no entry for this node, id {node}"


def _unique(what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value} appears twice")
        seen.add(value)


def _fill(raw: dict[str, Any]) -> dict[str, Any]:
    """Defaults that depend on other keys; what else is malformed is left for :func:`read` to name."""
    node = raw.get("node")
    if not isinstance(node, dict):
        return raw
    node = dict(node)
    peers = raw.get("nodes")
    entries = [peer for peer in peers if isinstance(peer, dict)] if isinstance(peers, list) else []
    me = _number(node.get("id"))
    mine = next((peer for peer in entries if me is not None and _number(peer.get("id")) == me), None)
    if mine is None and entries and me is not None:
        raise ConfigError(_no_entry(me))
    for name in ("address", "peer_address"):
        if mine is not None and name in mine:
            node.setdefault(name, mine[name])
    for name, source in (("listen", "address"), ("peer_listen", "peer_address")):
        if source in node:
            node.setdefault(name, node[source])
    return {**raw, "node": node}


def _number(value: object) -> int | None:
    """A node's id, perhaps as a variable has it; None if it is none."""
    if isinstance(value, Given):
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
    return value if isinstance(value, int) else None


def parse_config(raw: dict[str, Any], where: str, environ: Mapping[str, str] | None = None) -> NodeConfig:
    """Check a configuration given as plain data, ``where`` names its origin in errors; variables of ``environ`` come
    before it.

    Raises ConfigError that names origin and key, or the variable, of every problem.
    """
    given = variables.used(NodeConfig, environ or {})
    also = f" (with {', '.join(given)} of the environment)" if given else ""
    merged = variables.overlaid(NodeConfig, raw, environ or {})
    try:
        config, problems = read(NodeConfig, _fill(merged))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}{also}") from None
    if problems:
        told = [f"{problem.source}: {problem.text}" for problem in problems if problem.source]
        if own := [problem.text for problem in problems if not problem.source]:
            told.append(f"{where}: {'; '.join(own)}{also}")
        raise ConfigError("; ".join(told))
    return config


def load_config(path: str | Path) -> NodeConfig:
    """Read and check a node's configuration: the file, and the variables of the environment, which come before it.
    Relative paths count from the file's folder.

    Raises ConfigError that names file and key, or the variable.
    """
    path = Path(path)
    try:
        # Some editors begin a file with a byte order mark.
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    config = parse_config(raw, str(path), os.environ)
    folder, node = path.absolute().parent, config.node
    try:
        paths = {"data_dir": str((folder / node.data_dir).resolve())}
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: node.data_dir: {error}") from None
    if node.log_file is not None:
        paths["log_file"] = str(folder / node.log_file)
    files = {name: getattr(config.security, name) for name in _FILES}
    absolute = {name: str(folder / file) for name, file in files.items() if file is not None}
    return replace(config, node=replace(node, **paths), security=replace(config.security, **absolute))


def _toml(value: str | float) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def render(config: NodeConfig) -> str:
    """Write ``config`` as TOML; :func:`load_config` reads the same configuration back."""
    lines: list[str] = []
    for name in ("cluster", "node", "raft", "security"):
        values = asdict(getattr(config, name)).items()
        lines += ["", f"[{name}]"] + [f"{key} = {_toml(value)}" for key, value in values if value is not None]
    if config.dial:
        lines += ["", "[dial]"] + [f"{node} = {_toml(address)}" for node, address in sorted(config.dial.items())]
    for peer in config.nodes:
        lines += ["", "[[nodes]]"] + [f"{key} = {_toml(value)}" for key, value in asdict(peer).items()]
    return "\n".join(lines[1:]) + "\n"
