"""Joining a running cluster: a data folder becomes a node's, once, however often it is asked.

The folder gets, in this order, each durable before the next: ``join.json`` (the incarnation, drawn before the cluster
is asked, and the addresses), the node's identity and its copy of the shard map, and ``raftkv.toml``, the node's
configuration. A folder with the last one has joined. Whatever is interrupted goes on: the cluster gives one folder one
node id.
"""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgpack

from raftkv.cli.common import run
from raftkv.cli.local import PEER_PORT_OFFSET
from raftkv.cli.ports import port_problem
from raftkv.cli.process import write_atomically
from raftkv.client.admin import AdminClient, shard_map_of
from raftkv.errors import ConditionFailed, ConfigError, DeadlineExceeded, RaftKVError, Unavailable, WrongCluster
from raftkv.node.config import NodeConfig, load_config, parse_config, render, split_address
from raftkv.storage.folder import DataFolder
from raftkv.storage.fs import OsFileSystem
from raftkv.v1 import admin_pb2

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


def join(endpoints: str, folder: Path, places: Places, timeout: float = _TIMEOUT) -> NodeConfig:
    """Make ``folder`` a node's of the cluster at ``endpoints``, unless it is one already; its configuration.

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
            return _joined(endpoints, folder, places)
        note = _noted(folder, places)
        _check_ports(places.listen or note.address, places.peer_listen or note.peer_address)
        answer = _take_in(endpoints, folder, note, timeout)
        return _settle(folder, note, places, answer)
    except OSError as error:
        raise JoinError(f"{folder}: cannot write there: {error.strerror or error}") from None
    finally:
        lock.release()


def has_begun(folder: Path) -> bool:
    """Whether ``folder`` was to join before, so that its addresses are known."""
    return (folder / _NOTE).exists()


def _joined(endpoints: str, folder: Path, places: Places) -> NodeConfig:
    """The configuration of a folder that has joined. Other addresses than then are refused."""
    config = load_config(folder / CONFIG)
    for name, given in asdict(places).items():
        kept = getattr(config.node, name)
        if given is not None and given != kept:
            option = name.replace("_", "-")
            raise ConfigError(f"{folder}: node {config.node.id} joined with --{option} {kept}, not {given}")
    try:
        state = _ask(endpoints, _GLANCE, lambda client: client.known())
    except (Unavailable, DeadlineExceeded):
        # The node finds its cluster by itself; whom it should have asked for need not live any more.
        return config
    if state.map.cluster_id != config.cluster.id:
        raise JoinError(
            f"{folder}: node {config.node.id} belongs to cluster {config.cluster.id}, but at {endpoints} is cluster "
            f"{state.map.cluster_id}: take an empty folder to join that"
        )
    if config.node.id in state.map.removed:
        raise JoinError(
            f"{folder}: node {config.node.id} has been removed from the cluster and cannot come back: take an empty "
            "folder to join as a new node"
        )
    return config


def _noted(folder: Path, places: Places) -> _Note:
    """What the folder is to join as, durably noted."""
    path = folder / _NOTE
    known: _Note | None = None
    if path.exists():
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != _FORMAT:
                raise JoinError(f"{path}: written by another version of raftkv (format {raw['format']})")
            known = _Note(str(raw["incarnation"]), str(raw["address"]), str(raw["peer_address"]))
        except (ValueError, KeyError, TypeError) as error:
            raise JoinError(f"{path}: damaged ({error!r}): take an empty folder") from None
    elif (folder / _IDENTITY).exists():
        raise JoinError(f"{folder}: is a node's data folder already: start it with its configuration, `serve --config`")
    if places.address is None and known is None:
        raise ConfigError("--address HOST:PORT is missing: where clients and other nodes are to find this node")
    address = _reachable("--address", places.address) if places.address else known.address if known else ""
    if places.peer_address:
        peer_address = _reachable("--peer-address", places.peer_address)
    else:
        peer_address = known.peer_address if known and known.address == address else _peer_address(address)
    incarnation = known.incarnation if known else secrets.token_hex(_INCARNATION_BYTES)
    note = _Note(incarnation, address, peer_address)
    if note != known:
        write_atomically(path, json.dumps({"format": _FORMAT, **asdict(note)}, indent=1) + "\n")
        OsFileSystem().sync_dir(str(folder))
    return note


def _reachable(option: str, address: str) -> str:
    try:
        host, _ = split_address(address)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if host in ("0.0.0.0", "::"):
        listen = "--listen" if option == "--address" else "--peer-listen"
        raise ConfigError(f"{option} {address}: nobody can dial that; say where this node is reached, and {listen} too")
    return address


def _peer_address(address: str) -> str:
    host, port = split_address(address)
    if port + PEER_PORT_OFFSET > 65535:
        raise ConfigError(f"--peer-address is missing: port {port} + {PEER_PORT_OFFSET} is no port")
    return f"[{host}]:{port + PEER_PORT_OFFSET}" if ":" in host else f"{host}:{port + PEER_PORT_OFFSET}"


def _check_ports(*addresses: str) -> None:
    """Before the cluster has a member that cannot serve."""
    for address in addresses:
        try:
            problem = port_problem(address)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if problem:
            raise JoinError(f"cannot listen at {address}: {problem}")


def _take_in(endpoints: str, folder: Path, note: _Note, timeout: float) -> admin_pb2.JoinResponse:
    cluster_id = ""
    if (folder / _IDENTITY).exists():
        # It was taken in already, and interrupted before it could write its configuration.
        text = (folder / _IDENTITY).read_bytes().rpartition(b"\ncrc32 ")[0]
        cluster_id = str(json.loads(text)["cluster_id"])
    try:
        return _ask(
            endpoints,
            timeout,
            lambda client: client.join(note.address, note.peer_address, note.incarnation, cluster_id),
        )
    except ConditionFailed as error:
        raise JoinError(f"the cluster does not take this node in: {error}") from None
    except WrongCluster as error:
        raise JoinError(f"{folder}: belongs to another cluster: {error}; take an empty folder") from None


def _settle(folder: Path, note: _Note, places: Places, answer: admin_pb2.JoinResponse) -> NodeConfig:
    """Write what the node needs to start."""
    shard_map = shard_map_of(answer.map)
    raw = {
        "cluster": {
            "id": shard_map.cluster_id,
            "slots": shard_map.slots,
            "groups": answer.groups,
            "replicas": answer.replicas,
        },
        "node": {
            "id": answer.node,
            "data_dir": ".",
            "joined": True,
            "address": note.address,
            "peer_address": note.peer_address,
            "listen": places.listen or note.address,
            "peer_listen": places.peer_listen or note.peer_address,
        },
        "raft": {
            "election_min": answer.election_min,
            "election_max": answer.election_max,
            "heartbeat": answer.heartbeat,
            "snapshot_bytes": answer.snapshot_bytes,
        },
        "nodes": [
            {"id": node.id, "address": node.address, "peer_address": node.peer_address} for node in shard_map.nodes
        ],
    }
    config = parse_config(raw, f"what the cluster said to node {answer.node}")
    data = DataFolder.open(
        OsFileSystem(), str(folder), shard_map.cluster_id, answer.node, random.Random(), note.incarnation
    )
    try:
        data.save_map(msgpack.packb(shard_map.to_wire()))
    finally:
        data.close()
    write_atomically(folder / CONFIG, render(config))
    OsFileSystem().sync_dir(str(folder))
    return load_config(folder / CONFIG)


def _ask(endpoints: str, timeout: float, question: Callable[[AdminClient], Awaitable[T]]) -> T:
    async def main() -> T:
        async with AdminClient(endpoints, timeout=timeout) as client:
            return await question(client)

    return run(main())
