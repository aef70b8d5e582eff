"""Joining a running cluster: a data folder becomes a node's, once, however often it is asked.

The folder gets, in this order, each durable before the next: ``join.json`` (the incarnation, drawn before the cluster
is asked, and the addresses), the node's identity and its copy of the shard map, and ``raftkv.toml``, the node's
configuration. A folder with the last one has joined. Whatever is interrupted goes on: the cluster gives one folder one
node id.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import msgpack

from raftkv.addresses import Address, BadAddress, parse_address
from raftkv.api.status import Joined
from raftkv.client.admin import AdminClient
from raftkv.client.tls import TLS
from raftkv.errors import (
    ConditionFailed,
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    RaftKVError,
    Unauthenticated,
    Unavailable,
    WrongCluster,
    WrongVersion,
)
from raftkv.files import write_atomically
from raftkv.local.ports import port_problem
from raftkv.local.shape import PEER_PORT_OFFSET
from raftkv.node.config import NodeConfig, load_config, parse_config, render
from raftkv.node.credentials import check_exposure, peer_secret
from raftkv.storage.folder import DataFolder
from raftkv.storage.fs import OsFileSystem
from shards.map import ShardMap

T = TypeVar("T")

CONFIG: Final = "raftkv.toml"
_NOTE: Final = "join.json"
_IDENTITY: Final = "identity.json"
_FORMAT: Final = 1
_TIMEOUT: Final = 30.0
"""Seconds for being taken in: outlasts elections, and nodes that are starting."""

_GLANCE: Final = 1.0
_INCARNATION_BYTES: Final = 16


class JoinError(RaftKVError):
    """The node cannot join; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a node is to be reached, by clients and by nodes, and where it listens if that differs; None: not given."""

    address: str | None = None
    peer_address: str | None = None
    listen: str | None = None
    peer_listen: str | None = None


@dataclass(frozen=True, slots=True)
class _Note:
    """What ``join.json`` holds."""

    incarnation: str
    address: str
    peer_address: str


def join(
    endpoints: str,
    folder: Path,
    places: Places,
    timeout: float = _TIMEOUT,
    *,
    node_options: Mapping[str, Any] | None = None,
    dial: Mapping[int, str] | None = None,
    security: Mapping[str, Any] | None = None,
    tls: TLS | None = None,
    token: str = "",
) -> NodeConfig:
    """Make ``folder`` a node's of the cluster at ``endpoints``, unless it is one already; its configuration.

    ``node_options``: keys of the configuration's section ``node``; ``dial``, ``security``: its sections of these names.
    ``tls``: how the cluster is spoken to. The node's own certificate can be made once its id is known. ``token``: lets
    one folder join, see :func:`join_token`. All that this machine can tell is checked before the cluster is asked, so
    that what cannot serve does not become a member.

    Raises ConfigError for wrong arguments, JoinError, Unavailable if no node answers within ``timeout`` seconds,
    DataFolderInUse if the same is being done for this folder.
    """
    try:
        fs = OsFileSystem()
        fs.makedirs(str(folder))
        lock = fs.lock(str(folder / "join.lock"))
    except OSError as error:
        raise JoinError(f"{folder}: this data folder cannot be used: {error.strerror or error}") from None
    try:
        if (folder / CONFIG).exists():
            return _joined(endpoints, folder, places, tls)
        cluster_id = _begun_with(folder)
        known = _noted(folder)
        plan = _Plan(_note(known, places), places, node_options or {}, dial or {}, security or {}, tls)
        plan.check()
        if plan.note != known:
            _write_note(folder, plan.note)
        try:
            answer = _take_in(endpoints, folder, plan, cluster_id, token, timeout)
        except JoinError:
            # What was refused must not be asked for again.
            if known is None:
                (folder / _NOTE).unlink()
            elif plan.note != known:
                _write_note(folder, known)
            raise
        return _settle(folder, plan, answer)
    except RaftKVError:
        raise
    except OSError as error:
        raise JoinError(f"{folder}: cannot write there: {error.strerror or error}") from None
    finally:
        lock.release()


def join_token(endpoints: str, timeout: float, tls: TLS | None = None, user: str | None = None) -> str:
    """A token with which one node may join the cluster at ``endpoints``. ``user``: the token of who asks.

    Raises as AdminClient does.
    """
    return _ask(endpoints, timeout, tls, lambda client: client.add_join_token(), user)


def has_begun(folder: Path) -> bool:
    """Whether ``folder`` was to join before, so that its addresses are known."""
    return (folder / _NOTE).exists()


def _joined(endpoints: str, folder: Path, places: Places, tls: TLS | None) -> NodeConfig:
    """The configuration of a folder that has joined. Other addresses than then are refused."""
    config = load_config(folder / CONFIG)
    for name, given in asdict(places).items():
        kept = getattr(config.node, name)
        if given is not None and given != kept:
            option = name.replace("_", "-")
            raise ConfigError(f"{folder}: node {config.node.id} joined with --{option} {kept}, not {given}")
    try:
        state = _ask(endpoints, _GLANCE, tls, lambda client: client.known())
    except (Unavailable, DeadlineExceeded, Unauthenticated):
        # The node finds its cluster by itself; whom it should have asked for need not live any more.
        return config
    if state.map.cluster_id != config.cluster.id:
        raise JoinError(
            f"{folder}: node {config.node.id} belongs to cluster {config.cluster.id}, but at {endpoints} is cluster "
            f"{state.map.cluster_id}: use an empty folder to join that"
        )
    if config.node.id in state.map.removed:
        raise JoinError(
            f"{folder}: node {config.node.id} has been removed from the cluster and cannot come back: use an empty "
            "folder to join as a new node"
        )
    return config


def _begun_with(folder: Path) -> str:
    """The cluster that has taken ``folder`` in, before it was interrupted; "" if none has."""
    path = folder / _IDENTITY
    if path.exists():
        try:
            return str(json.loads(path.read_bytes().rpartition(b"\ncrc32 ")[0])["cluster_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise JoinError(f"{path}: damaged ({error!r}): use an empty folder") from None
    if (folder / "wal").exists() or (folder / "snapshots").exists():
        raise JoinError(f"{folder}: holds the data of a node whose {_IDENTITY} is missing: use an empty folder")
    return ""


def _noted(folder: Path) -> _Note | None:
    """What ``folder`` was to join as before."""
    path = folder / _NOTE
    if path.exists():
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != _FORMAT:
                raise JoinError(f"{path}: written by another version of raftkv (format {raw['format']})")
            return _Note(str(raw["incarnation"]), str(raw["address"]), str(raw["peer_address"]))
        except (ValueError, KeyError, TypeError) as error:
            raise JoinError(f"{path}: damaged ({error!r}): use an empty folder") from None
    if (folder / _IDENTITY).exists():
        raise JoinError(f"{folder}: is already a node's data folder: start it with its configuration, `serve --config`")
    return None


def _note(known: _Note | None, places: Places) -> _Note:
    """What the folder is to join as: what is given, else as before."""
    address = places.address or (known.address if known else "")
    if not address:
        raise ConfigError("--address HOST:PORT is missing: where clients and other nodes are to find this node")
    peer_address = places.peer_address
    if not peer_address:
        peer_address = known.peer_address if known and known.address == address else _peer_address(address)
    return _Note(known.incarnation if known else secrets.token_hex(_INCARNATION_BYTES), address, peer_address)


def _peer_address(address: str) -> str:
    host, port = _parsed("--address", address)
    if port + PEER_PORT_OFFSET > 65535:
        raise ConfigError(f"--peer-address is missing: port {port} + {PEER_PORT_OFFSET} is not a port")
    return str(Address(host, port + PEER_PORT_OFFSET))


def _parsed(option: str, address: str) -> Address:
    try:
        return parse_address(address)
    except BadAddress as error:
        raise ConfigError(f"{option}: {error}") from None


def _write_note(folder: Path, note: _Note) -> None:
    write_atomically(folder / _NOTE, json.dumps({"format": _FORMAT, **asdict(note)}, indent=1) + "\n")
    OsFileSystem().sync_dir(str(folder))


@dataclass(frozen=True, slots=True)
class _Plan:
    """The node to be: its note, and what else goes into its configuration."""

    note: _Note
    places: Places
    node_options: Mapping[str, Any]
    dial: Mapping[int, str]
    security: Mapping[str, Any]
    tls: TLS | None

    def check(self) -> None:
        """Raises ConfigError or JoinError if no cluster could make a node of this that serves."""
        if _parsed("--address", self.note.address) == _parsed("--peer-address", self.note.peer_address):
            raise ConfigError(
                f"--peer-address {self.note.peer_address} is also --address: nodes need a port of their own"
            )
        alone = [{"id": 1, "address": self.note.address, "peer_address": self.note.peer_address}]
        config = self.config({"id": str(uuid.UUID(int=0))}, 1, {}, alone, "this node cannot join", os.environ)
        if self.tls is None:
            peer_secret(config)
            check_exposure(config)
        node = config.node
        for address in (node.listen, node.peer_listen, node.metrics):
            if address is not None and (problem := port_problem(address)):
                raise JoinError(f"cannot listen at {address}: {problem}")

    def config(
        self,
        cluster: dict[str, Any],
        node: int,
        raft: dict[str, Any],
        nodes: list[dict[str, Any]],
        where: str,
        environ: Mapping[str, str] | None = None,
    ) -> NodeConfig:
        """The node's configuration in a cluster, with the variables of ``environ``; ``where`` names its origin in the
        ConfigError."""
        section = {
            "id": node,
            "data_dir": ".",
            "joined": True,
            "address": self.note.address,
            "peer_address": self.note.peer_address,
            "listen": self.places.listen or self.note.address,
            "peer_listen": self.places.peer_listen or self.note.peer_address,
            **self.node_options,
        }
        raw = {"cluster": cluster, "node": section, "raft": raft, "security": dict(self.security)}
        return parse_config({**raw, "dial": dict(self.dial), "nodes": nodes}, where, environ)


def _take_in(endpoints: str, folder: Path, plan: _Plan, cluster_id: str, token: str, timeout: float) -> Joined:
    note = plan.note

    async def ask(client: AdminClient) -> Joined:
        # A cluster of another version must not get a member that cannot work with it: this finds that out.
        with suppress(Unauthenticated):  # by a cluster with users, so it is no older one
            await client.state()
        return await client.join(note.address, note.peer_address, note.incarnation, cluster_id, token)

    try:
        return _ask(endpoints, timeout, plan.tls, ask)
    except (ConditionFailed, InvalidArgument, WrongVersion) as error:
        raise JoinError(f"the cluster refuses this node: {error}") from None
    except WrongCluster as error:
        raise JoinError(f"{folder}: belongs to another cluster: {error}; use an empty folder") from None


def _settle(folder: Path, plan: _Plan, answer: Joined) -> NodeConfig:
    """Write what the node needs to start."""
    shard_map, settings = answer.map, answer.settings
    cluster = {
        "id": shard_map.cluster_id,
        "slots": shard_map.slots,
        "groups": settings.groups,
        "replicas": settings.replicas,
    }
    raft = {
        "election_min": settings.election_min,
        "election_max": settings.election_max,
        "heartbeat": settings.heartbeat,
        "snapshot_bytes": settings.snapshot_bytes,
    }
    where = f"what the cluster said to node {answer.node}"
    config = plan.config(cluster, answer.node, raft, _entries(shard_map, answer.node), where)
    data = DataFolder.open(
        OsFileSystem(), str(folder), shard_map.cluster_id, answer.node, random.Random(), plan.note.incarnation
    )
    try:
        data.save_map(msgpack.packb(shard_map.to_wire()))
    finally:
        data.close()
    write_atomically(folder / CONFIG, render(config))
    OsFileSystem().sync_dir(str(folder))
    return load_config(folder / CONFIG)


def _entries(shard_map: ShardMap, own: int) -> list[dict[str, Any]]:
    """The nodes of the map for the configuration of node ``own``.

    Without those that cannot be: a map that an earlier version wrote may hold any text for an address.
    """
    found: dict[int, dict[str, Any]] = {}
    taken: set[str] = set()
    for node in sorted(shard_map.nodes, key=lambda node: node.id != own):
        try:
            addresses = {str(parse_address(node.address)), str(parse_address(node.peer_address))}
        except BadAddress:
            continue
        if len(addresses) == 2 and taken.isdisjoint(addresses):
            taken |= addresses
            found[node.id] = {"id": node.id, "address": node.address, "peer_address": node.peer_address}
    return [entry for _, entry in sorted(found.items())]


def _ask(
    endpoints: str,
    timeout: float,
    tls: TLS | None,
    question: Callable[[AdminClient], Awaitable[T]],
    user: str | None = None,
) -> T:
    async def main() -> T:
        async with AdminClient(endpoints, timeout=timeout, tls=tls, token=user) as client:
            return await question(client)

    return asyncio.run(main())
