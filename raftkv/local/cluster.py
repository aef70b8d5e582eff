"""A cluster of node processes on this machine.

Its folder holds ``cluster.json`` (its shape, fixed when it is made), ``peer.secret`` (what its nodes prove to each
other that they know) and, for each node, ``node-<id>`` with ``node.toml``, ``node.log``, ``node.pid`` and the node's
``data``.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgpack

from raftkv.addresses import parse_address
from raftkv.api.credentials import digest_of, new_token
from raftkv.client.admin import AdminClient
from raftkv.client.tls import TLS
from raftkv.clock import SystemClock
from raftkv.errors import ConditionFailed, ConfigError
from raftkv.files import write_atomically, write_private
from raftkv.local.node import STOP_TIMEOUT, Launch, LocalError, LocalNode, check_ports
from raftkv.local.process import pause
from raftkv.local.shape import Place, Shape
from raftkv.local.status import cluster_status, probe, pulse, why_not_ready
from raftkv.node.config import NodeConfig, parse_config, render
from raftkv.storage.folder import saved_map
from raftkv.storage.fs import OsFileSystem
from shards.map import ShardMap

READY_TIMEOUT: Final = 60.0
"""Seconds until nodes that were started must serve; a node replays up to a few hundred MiB of log before."""
_POLL: Final = 0.05
FIRST_USER: Final = "admin"
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_SECRET_BYTES: Final = 32
_USUAL: Final = Launch()


class LocalProcesses:
    """All nodes of one local cluster."""

    def __init__(self, folder: Path, shape: Shape, launch: Launch) -> None:
        self.folder = folder
        self.shape = shape
        self._launch = launch
        self.nodes = [self._node(place) for place in shape.places]

    def _node(self, place: Place) -> LocalNode:
        return LocalNode(self.folder / f"node-{place.id}", place, self._launch)

    def node(self, node: int) -> LocalNode:
        """The node with this id. Raises LocalError if there is none."""
        for candidate in self.nodes:
            if candidate.id == node:
                return candidate
        raise LocalError(f"there is no node {node} in this cluster")

    @property
    def endpoints(self) -> str:
        """Client addresses of all nodes, separated by commas."""
        return ",".join(node.address for node in self.nodes)

    @property
    def certificates(self) -> Path:
        """The folder of the cluster's CA and of its certificates, if it has any."""
        return self.folder / "tls"

    @property
    def tls(self) -> TLS | None:
        """How clients of this cluster speak to it."""
        folder = self.certificates
        return TLS(folder / "ca.pem", folder / "client.pem", folder / "client.key") if folder.exists() else None

    @property
    def token_file(self) -> Path:
        """Has the token of the cluster's first user, if it was made by :meth:`bootstrap`."""
        return self.folder / "admin.token"

    @property
    def token(self) -> str | None:
        """The token of the cluster's first user, None if this folder knows none."""
        try:
            return self.token_file.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def bootstrap(self) -> None:
        """Make the first user, ``admin``, of a cluster that runs; afterwards nobody else is served.

        Nothing is done if there are users. Raises Unavailable, or OSError if the token cannot be kept.
        """
        known = self.token
        token = known or new_token()
        if known is None:
            # Before the cluster knows it: a token that was lost would shut everybody out.
            write_private(self.token_file, token + "\n")

        async def ask() -> None:
            async with AdminClient(self.endpoints, timeout=READY_TIMEOUT, tls=self.tls, token=token) as client:
                await client.bootstrap(FIRST_USER, digest_of(token))

        try:
            asyncio.run(ask())
        except ConditionFailed:
            # With the same token, it was made before.
            if known is None:
                self.token_file.unlink()
        # A node hears of it within a second.
        while any(probe(node.address, tls=self.tls) for node in self.nodes):
            pause(_POLL)

    @property
    def secret_file(self) -> Path:
        """What the cluster's nodes prove to each other that they know."""
        return self.folder / "peer.secret"

    @staticmethod
    def shape_file(folder: Path) -> Path:
        return folder / "cluster.json"

    @classmethod
    def open(cls, folder: Path, launch: Launch = _USUAL) -> LocalProcesses | None:
        """The cluster kept in ``folder``, None if there is none. Raises ConfigError if its file is damaged."""
        path = cls.shape_file(folder)
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"{path}: cannot read it: {error.strerror or error}") from None
        return cls(folder.absolute(), Shape.from_json(text, path), launch)

    @classmethod
    def create(
        cls,
        folder: Path,
        shape: Shape,
        *,
        node_options: Mapping[str, Any] | None = None,
        raft_options: Mapping[str, Any] | None = None,
        dial: Mapping[tuple[int, int], str] | None = None,
        launch: Launch = _USUAL,
        metrics: Mapping[int, str] | None = None,
        secure: bool = False,
    ) -> LocalProcesses:
        """Write the folder of a new cluster. ``dial[a, b]``: address at which node a reaches node b. ``metrics[a]``:
        where node a serves metrics and probes. ``secure``: nodes and clients have certificates, of a CA that is made.

        Raises ConfigError if the options do not fit together; nothing is written then.
        """
        cluster = cls(folder.absolute(), shape, launch)
        ids = {place.id for place in shape.places}
        if strangers := sorted({a for a, _ in dial or {}} - ids):
            raise ConfigError(f"dial: there is no node {strangers[0]} yet; one that joins brings its own addresses")
        configs = []
        for place in shape.places:
            own = {"metrics": metrics[place.id]} if metrics and place.id in metrics else {}
            options = {**(node_options or {}), **own}
            configs.append(cluster._config(place, options, raft_options or {}, dial or {}, secure))
        try:
            cluster.folder.mkdir(parents=True, exist_ok=True)
            if secure:
                _certify(cluster)
            elif cluster.certificates.exists():
                raise LocalError(
                    f"{cluster.certificates} is of a cluster that was to be secure: remove it, or use --secure"
                )
            else:
                write_private(cluster.secret_file, secrets.token_urlsafe(_SECRET_BYTES) + "\n")
            for node, config in zip(cluster.nodes, configs, strict=True):
                node.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(node.config, render(config))
            # Last, so that a folder with this file is complete.
            write_atomically(cls.shape_file(folder), shape.to_json())
        except OSError as error:
            raise LocalError(f"{folder}: cannot write the cluster's files: {error.strerror or error}") from None
        return cluster

    def _config(
        self,
        place: Place,
        node: Mapping[str, Any],
        raft: Mapping[str, Any],
        dial: Mapping[tuple[int, int], str],
        secure: bool,
    ) -> NodeConfig:
        shape = self.shape
        peers = [{"id": p.id, "address": p.address, "peer_address": p.peer_address} for p in shape.places]
        dials = {b: address for (a, b), address in dial.items() if a == place.id}
        cluster = {"id": shape.cluster_id, "slots": shape.slots, "groups": shape.groups, "replicas": shape.replicas}
        raw = {"cluster": cluster, "node": {"id": place.id, "data_dir": "data", **node}, "raft": dict(raft)}
        raw["security"] = self.security(place.id, Path(".."), secure=secure)
        return parse_config({**raw, "dial": dials, "nodes": peers}, f"node {place.id}")

    def security(self, node: int, folder: Path, *, secure: bool) -> dict[str, Any]:
        """The section ``security`` of a node's configuration; ``folder``: that of the cluster, as seen from there."""
        if not secure:
            return {"secret_file": str(folder / self.secret_file.name)}
        paths = {"ca_file": "ca.pem", "cert_file": f"node-{node}.pem", "key_file": f"node-{node}.key"}
        return {
            **{key: str(folder / self.certificates.name / name) for key, name in paths.items()},
            "client_certs": True,
        }

    def adopt(self, place: Place) -> LocalNode:
        """Remember a node that has joined; its folder and configuration exist. Raises LocalError."""
        self.shape = replace(self.shape, places=(*self.shape.places, place))
        try:
            write_atomically(self.shape_file(self.folder), self.shape.to_json())
        except OSError as error:
            raise LocalError(f"{self.folder}: cannot write there: {error.strerror or error}") from None
        node = self._node(place)
        self.nodes.append(node)
        return node

    def removed(self) -> frozenset[int]:
        """Nodes that have been removed from the cluster for good, as far as the others have noted it."""
        newest: ShardMap | None = None
        for node in self.nodes:
            try:
                data = saved_map(OsFileSystem(), str(node.data))
                found = None if data is None else ShardMap.from_wire(msgpack.unpackb(data))
            except (OSError, ValueError, msgpack.UnpackException):
                continue
            if found is not None and (newest is None or found.epoch > newest.epoch):
                newest = found
        return frozenset() if newest is None else frozenset(newest.removed)

    def start_missing(self) -> list[LocalNode]:
        """Start the members that do not run. Raises LocalError if a port is taken; nothing is started then."""
        removed = self.removed()
        missing = [node for node in self.nodes if node.process() is None and node.id not in removed]
        check_ports(missing)
        for node in missing:
            node.start()
        return missing

    def wait_ready(self, timeout: float = READY_TIMEOUT, nodes: Sequence[LocalNode] | None = None) -> None:
        """Wait until every member (or those given) serves. Raises LocalError if one ends or the time runs out."""
        clock = SystemClock()
        end = clock.now() + timeout
        removed = self.removed()
        waiting = [node for node in self.nodes if node.id not in removed] if nodes is None else list(nodes)
        tls, token = self.tls, self.token
        while waiting:
            for node in waiting:
                if node.process() is None:
                    raise LocalError(f"node {node.id} ended while starting; the end of {node.log}:\n{node.log_tail()}")
            waiting = [node for node in waiting if not pulse(node.address, tls=tls)]
            if waiting and clock.now() >= end:
                states = {node.id: probe(node.address, tls=tls, token=token) for node in waiting}
                reasons = "\n".join(f"  node {n.id}: {why_not_ready(states[n.id])}; log: {n.log}" for n in waiting)
                raise LocalError(f"not ready after {timeout:g} s:\n{reasons}")
            if waiting:
                pause(_POLL)

    def stop(self, timeout: float = STOP_TIMEOUT) -> dict[int, bool]:
        """Stop all nodes that run: node id -> whether it ended by itself rather than being killed."""
        clock = SystemClock()
        running = [node for node in self.nodes if node.process() is not None]
        for node in running:
            node.ask_to_stop()
        end = clock.now() + timeout
        ended = {node.id: node.finish(max(0.0, end - clock.now())) for node in running}
        for node in self.nodes:
            if node not in running:
                node.pid_file.remove()
        return ended

    def kill(self) -> None:
        """SIGKILL to all nodes before any of them is waited for."""
        for node in self.nodes:
            node.signal(signal.SIGKILL)
        for node in self.nodes:
            node.kill()

    def status(self) -> dict[str, Any]:
        """The cluster as plain data: nodes with pid, address and state, groups with leader, term and indexes."""
        about = {
            "cluster_id": self.shape.cluster_id,
            "data_dir": str(self.folder),
            "endpoints": self.endpoints,
        }
        return {**about, **cluster_status(self.nodes, self.removed(), self.tls, self.token)}

    def leader(self, group: int) -> int | None:
        """The node that leads ``group`` according to the newest term that any node reports, None if none does."""
        for entry in self.status()["groups"]:
            if entry["id"] == group:
                leader: int | None = entry["leader"]
                return leader
        return None


def _certify(cluster: LocalProcesses) -> None:
    """Make the CA of a new cluster, and the certificates of its nodes and of a client."""
    # Only who makes certificates waits until their library is loaded.
    from raftkv.local.certificates import Authority

    folder = cluster.certificates
    # One that was made before whatever came between did not get as far as the cluster's file.
    authority = Authority.open(folder) if folder.exists() else Authority.create(folder)
    authority.client("client")
    for place in cluster.shape.places:
        certify_node(cluster, place)


def certify_node(cluster: LocalProcesses, place: Place) -> None:
    """Make the certificate of a node of a cluster that has a CA. Raises CertificateError."""
    from raftkv.local.certificates import Authority

    hosts = [parse_address(address).host for address in (place.address, place.peer_address)]
    Authority.open(cluster.certificates).node(cluster.shape.cluster_id, place.id, [*hosts, *LOOPBACK])


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other commands from making, starting or stopping the cluster of ``folder``, which is made if need be.

    Raises LocalError if another command is at it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "cluster.lock").open("w")
    except OSError as error:
        raise LocalError(f"{folder}: cannot write there: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LocalError(f"{folder}: another command is starting or stopping this cluster") from None
        yield
