"""A cluster of node processes on this machine: what ``raftkv up|down|status`` and LocalCluster share.

The folder of a cluster holds ``cluster.json`` (its shape, fixed when it is made) and, for each node, ``node-<id>`` with
``node.toml``, ``node.log``, ``node.pid`` and the node's ``data``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
import msgpack

import raftkv
from raftkv.addresses import Address, parse_address, parse_listen_address
from raftkv.cli.files import write_atomically
from raftkv.cli.process import PidFile, Process, pause
from raftkv.clock import SystemClock
from raftkv.errors import ConfigError, RaftKVError
from raftkv.node.config import DEFAULT_SLOTS, NodeConfig, load_config, parse_config, render
from raftkv.storage.folder import saved_map
from raftkv.storage.fs import OsFileSystem
from raftkv.v1 import admin_pb2, admin_pb2_grpc
from shards.map import ShardMap

MAIN: Final = "raftkv.cli.main"
PEER_PORT_OFFSET: Final = 100
MAX_LOCAL_NODES: Final = 50
READY_TIMEOUT: Final = 60.0
"""Seconds until nodes that were started must serve; a node replays up to a few hundred MiB of log before."""
STOP_TIMEOUT: Final = 15.0
"""Seconds that a node gets to hand over its leaderships and finish what is in flight, before it is killed."""
_PROBE_TIMEOUT: Final = 1.0
_POLL: Final = 0.05
_FORMAT: Final = 1


class LocalError(RaftKVError):
    """The local cluster cannot be made, started or stopped; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one node listens, host:port, for clients and for its peers."""

    id: int
    address: str
    peer_address: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster's folder remembers."""

    cluster_id: str
    groups: int
    replicas: int
    slots: int
    places: tuple[Place, ...]

    def to_json(self) -> str:
        nodes = [{"id": p.id, "address": p.address, "peer_address": p.peer_address} for p in self.places]
        shape = {"format": _FORMAT, "cluster_id": self.cluster_id, "groups": self.groups, "replicas": self.replicas}
        return json.dumps({**shape, "slots": self.slots, "nodes": nodes}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Shape:
        """Raises ConfigError that names the file."""
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw["format"] != _FORMAT:
                raise ConfigError(f"{where}: written by another version of raftkv (format {raw['format']})")
            places = tuple(Place(int(n["id"]), str(n["address"]), str(n["peer_address"])) for n in raw["nodes"])
            for place in places:
                parse_address(place.address)
                parse_address(place.peer_address)
            return cls(str(raw["cluster_id"]), int(raw["groups"]), int(raw["replicas"]), int(raw["slots"]), places)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where}: damaged: {error!r}") from None


def places_from(port: int, nodes: int, host: str = "127.0.0.1") -> tuple[Place, ...]:
    """Node i takes ``port + i - 1`` for clients and the port 100 above it for its peers."""
    if port < 1 or port + PEER_PORT_OFFSET + nodes - 1 > 65535:
        raise ConfigError(f"--port {port}: the ports of {nodes} nodes must lie from 1 to 65535")
    first = port + PEER_PORT_OFFSET
    return tuple(Place(i + 1, str(Address(host, port + i)), str(Address(host, first + i))) for i in range(nodes))


def new_shape(places: Sequence[Place], groups: int, replicas: int, slots: int = DEFAULT_SLOTS) -> Shape:
    """A cluster that never was: it gets an id of its own."""
    return Shape(str(uuid.uuid4()), groups, replicas, slots, tuple(places))


@dataclass(frozen=True, slots=True)
class Launch:
    """How node processes are started. ``main``: the module that is run as the command ``raftkv``. ``environment``:
    variables besides those of this process."""

    main: str = MAIN
    environment: Mapping[str, str] = field(default_factory=dict)


class LocalNode:
    """One node's folder and its process."""

    def __init__(self, folder: Path, place: Place, launch: Launch) -> None:
        self.id = place.id
        self.address = place.address
        self.peer_address = place.peer_address
        self.folder = folder
        self.config = folder / "node.toml"
        self.log = folder / "node.log"
        self.data = folder / "data"
        self.pid_file = PidFile(folder / "node.pid")
        self._launch = launch
        self._child: subprocess.Popen[bytes] | None = None

    def metrics(self) -> str | None:
        """Where the node serves metrics and probes, None if nowhere. Raises ConfigError."""
        return load_config(self.config).node.metrics

    def process(self) -> Process | None:
        """The node's living process."""
        self._reap()
        process = self.pid_file.read()
        return process if process is not None and process.alive() else None

    def died(self) -> bool:
        """Whether the node was started, has ended, and nobody asked it to."""
        return self.pid_file.read() is not None and self.process() is None

    def start(self) -> Process:
        """Start the process, detached from this one's terminal. Raises LocalError if it cannot be started."""
        package_root = str(Path(raftkv.__file__).resolve().parent.parent)
        environment = {**os.environ, **self._launch.environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
        environment["PYTHONUNBUFFERED"] = "1"
        command = [sys.executable, "-P", "-m", self._launch.main, "serve", "--config", str(self.config)]
        # What is not logged goes to the same file, and follows the node when that rotates.
        command += ["--log-file", str(self.log)]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        process = Process.of(self._child.pid)
        if process is None:
            raise LocalError(f"node {self.id} ended at once:\n{self.log_tail()}")
        self.pid_file.write(process)
        return process

    def stop(self, timeout: float = STOP_TIMEOUT) -> bool:
        """Ask the node to end, wait, and kill it after ``timeout`` seconds. Whether it ended by itself."""
        process = self.process()
        if process is not None:
            self.ask_to_stop()
        return self.finish(timeout)

    def ask_to_stop(self) -> None:
        """SIGTERM; a paused process is continued, else it would not hear it."""
        process = self.process()
        if process is not None:
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGCONT)

    def finish(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for a node that was asked to stop, then kill it; True if it had ended."""
        process = self.process()
        by_itself = process is None or process.wait(timeout)
        if process is not None and not by_itself:
            process.signal(signal.SIGKILL)
            process.wait(timeout)
        self._reap(block=True)
        self.pid_file.remove()
        return by_itself

    def kill(self) -> None:
        """SIGKILL and wait until the process is gone. The pid file stays: the node died."""
        process = self.process()
        if process is not None:
            process.signal(signal.SIGKILL)
            process.wait(STOP_TIMEOUT)
        self._reap(block=True)

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the node's log, at most 64 KiB of it and of the file before."""
        found: list[str] = []
        for path in (self.log.with_name(f"{self.log.name}.1"), self.log):
            with contextlib.suppress(OSError), path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 64 * 1024))
                found += file.read().decode(errors="replace").splitlines()
        return "\n".join(found[-lines:])

    def _reap(self, *, block: bool = False) -> None:
        """A child that ended stays a zombie until its parent has asked for its exit code."""
        if self._child is None:
            return
        process = self.pid_file.read()
        ours = process is not None and process.pid == self._child.pid
        ended = self._child.poll() is not None
        if block and ours and not ended:
            self._child.wait(STOP_TIMEOUT)


class LocalProcesses:
    """All nodes of one local cluster."""

    def __init__(self, folder: Path, shape: Shape, launch: Launch) -> None:
        self.folder = folder
        self.shape = shape
        self._launch = launch
        self.nodes = [self._node(place) for place in shape.places]

    def _node(self, place: Place) -> LocalNode:
        return LocalNode(self.folder / f"node-{place.id}", place, self._launch)

    @property
    def endpoints(self) -> str:
        """Client addresses of all nodes, separated by commas."""
        return ",".join(node.address for node in self.nodes)

    @staticmethod
    def shape_file(folder: Path) -> Path:
        return folder / "cluster.json"

    @classmethod
    def open(cls, folder: Path, launch: Launch = Launch()) -> LocalProcesses | None:
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
        launch: Launch = Launch(),
        metrics: Mapping[int, str] | None = None,
    ) -> LocalProcesses:
        """Write the folder of a new cluster. ``dial[a, b]``: address at which node a reaches node b. ``metrics[a]``:
        where node a serves metrics and probes.

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
            configs.append(cluster._config(place, options, raft_options or {}, dial or {}))
        try:
            for node, config in zip(cluster.nodes, configs, strict=True):
                node.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(node.config, render(config))
            # Last, so that a folder with this file is complete.
            write_atomically(cls.shape_file(folder), shape.to_json())
        except OSError as error:
            raise LocalError(f"{folder}: cannot write the cluster's files: {error.strerror or error}") from None
        return cluster

    def _config(
        self, place: Place, node: Mapping[str, Any], raft: Mapping[str, Any], dial: Mapping[tuple[int, int], str]
    ) -> NodeConfig:
        shape = self.shape
        peers = [{"id": p.id, "address": p.address, "peer_address": p.peer_address} for p in shape.places]
        dials = {b: address for (a, b), address in dial.items() if a == place.id}
        cluster = {"id": shape.cluster_id, "slots": shape.slots, "groups": shape.groups, "replicas": shape.replicas}
        raw = {"cluster": cluster, "node": {"id": place.id, "data_dir": "data", **node}, "raft": dict(raft)}
        return parse_config({**raw, "dial": dials, "nodes": peers}, f"node {place.id}")

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
        while waiting:
            for node in waiting:
                if node.process() is None:
                    raise LocalError(f"node {node.id} ended while starting; the end of {node.log}:\n{node.log_tail()}")
            states = {node.id: probe(node.address) for node in waiting}
            waiting = [node for node in waiting if not (status := states[node.id]) or not status.ready]
            if waiting and clock.now() >= end:
                reasons = "\n".join(f"  node {n.id}: {_why(states[n.id])}; log: {n.log}" for n in waiting)
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

    def status(self) -> dict[str, Any]:
        """The cluster as plain data: nodes with pid, address and state, groups with leader, term and indexes."""
        seen = {node.id: (node.process(), probe(node.address)) for node in self.nodes}
        removed = self.removed()
        nodes = [_node_status(node, *seen[node.id], node.id in removed) for node in self.nodes]
        replicas = [(i, r) for i, (process, s) in seen.items() if process and s for r in s.replicas]
        ids = sorted({replica.group for _, replica in replicas})
        own = frozenset(seen)
        groups = [_group_status(group, [(i, r) for i, r in replicas if r.group == group], own) for group in ids]
        ready = all(node["state"] in ("ready", "removed") for node in nodes)
        return {
            "cluster_id": self.shape.cluster_id,
            "data_dir": str(self.folder),
            "endpoints": self.endpoints,
            "ready": ready,
            "nodes": nodes,
            "groups": groups,
        }

    def leader(self, group: int) -> int | None:
        """The node that leads ``group`` according to the newest term that any node reports, None if none does."""
        for entry in self.status()["groups"]:
            if entry["id"] == group:
                leader: int | None = entry["leader"]
                return leader
        return None


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


def _why(status: admin_pb2.GetStatusResponse | None) -> str:
    if status is None:
        return "does not answer"
    if not status.replicas:
        return "does not know the shard map yet"
    without = [str(r.group) for r in status.replicas if not r.leader]
    return f"no leader known for groups {', '.join(without)}" if without else "not ready"


def _node_status(
    node: LocalNode, process: Process | None, status: admin_pb2.GetStatusResponse | None, removed: bool
) -> dict[str, Any]:
    if process is None and removed:
        state = "removed"
    elif process is None:
        state = "died" if node.died() else "stopped"
    elif status is None:
        state = "unreachable"
    else:
        state = "ready" if status.ready else "starting"
    pid = process.pid if process else None
    return {"id": node.id, "pid": pid, "address": node.address, "state": state, "log": str(node.log)}


def _group_status(
    group: int, replicas: Sequence[tuple[int, admin_pb2.ReplicaStatus]], own: frozenset[int]
) -> dict[str, Any]:
    """``own``: the nodes of this cluster's folder, of which only what they say themselves counts."""
    leaders = [(r.term, i, r) for i, r in replicas if r.role == admin_pb2.ROLE_LEADER]
    term, leader, source = max(leaders, key=lambda entry: entry[0], default=(0, None, None))
    newest = max(r.term for _, r in replicas)
    if term < newest:
        # A node that joined from elsewhere may lead: its followers know it.
        elsewhere = {r.leader for _, r in replicas if r.term == newest and r.leader and r.leader not in own}
        leader, source = next(iter(elsewhere), None), None
    if source is None:
        source = max((r for _, r in replicas), key=lambda r: r.commit_index)
    members = [
        {
            "node": i,
            "role": admin_pb2.Role.Name(r.role).removeprefix("ROLE_").lower(),
            "commit": r.commit_index,
            "applied": r.applied_index,
        }
        for i, r in sorted(replicas, key=lambda entry: entry[0])
    ]
    return {
        "id": group,
        "leader": leader,
        "term": newest,
        "replicas": sorted(source.voters) or [member["node"] for member in members],
        "commit": source.commit_index,
        "applied": source.applied_index,
        "members": members,
    }


def probe(address: str, timeout: float = _PROBE_TIMEOUT) -> admin_pb2.GetStatusResponse | None:
    """Ask the node at ``address`` for its status; None if it does not answer within ``timeout`` seconds."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            return admin_pb2_grpc.AdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=timeout)
        except grpc.RpcError:
            return None


def check_ports(nodes: Sequence[LocalNode | Place]) -> None:
    """Raises LocalError if one of ``nodes`` could not listen."""
    for node in nodes:
        for address in (node.address, node.peer_address):
            problem = port_problem(address)
            if problem:
                raise LocalError(f"node {node.id} cannot listen at {address}: {problem}")


def port_problem(address: str) -> str | None:
    """Why nothing can listen at ``address``; None if it is free. Raises BadAddress."""
    host, port = parse_listen_address(address)
    try:
        # IPv4 first, if the name has both.
        family, _, _, _, place = min(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
            # Connections of an ended server linger for a minute; they do not keep a new one from listening.
            probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe_socket.bind(place)
            probe_socket.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def free_ports(count: int, start: int) -> list[int]:
    """``count`` free loopback ports, searched from ``start`` on, below those that the system hands out by itself.

    A port of a killed node must not be taken by somebody's outgoing connection before the node is back. Raises
    LocalError if there are not enough.
    """
    low, high = 15000, 32000
    found: list[int] = []
    for step in range(high - low):
        port = low + (start + step) % (high - low)
        if port_problem(f"127.0.0.1:{port}") is None:
            found.append(port)
            if len(found) == count:
                return found
    raise LocalError(f"there are no {count} free ports from {low} to {high} on this machine")
