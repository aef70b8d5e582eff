"""Real clusters for tests: node processes on free loopback ports, with their data in a temporary folder.

    with LocalCluster(nodes=3, groups=2) as cluster:
        with raftkv.Client(cluster.endpoints) as kv:
            kv.put("k", b"v")
            cluster.kill(cluster.leader(group=1))
            record = kv.get("k")
            assert record is not None and record.value == b"v"

With pytest, ask for the fixture ``raftkv_cluster``. All methods block; from a coroutine call them with
``asyncio.to_thread``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from raftkv.client.tls import TLS
from raftkv.clock import SystemClock
from raftkv.local.cluster import READY_TIMEOUT, LocalProcesses
from raftkv.local.growing import add_node
from raftkv.local.joining import Places
from raftkv.local.node import MAIN, STOP_TIMEOUT, Launch, LocalError
from raftkv.local.ports import free_ports
from raftkv.local.process import pause
from raftkv.local.shape import Place, new_shape, places_from
from raftkv.node.config import DEFAULT_GROUPS, DEFAULT_SLOTS

__all__ = ["LocalCluster"]

_POLL: Final = 0.02


class LocalCluster:
    """A cluster of ``nodes`` processes with ``groups`` shard groups of ``replicas`` each (default: up to three).

    ``folder`` keeps data and logs, and one that holds a cluster already is used with the shape that it remembers;
    without a folder, a temporary one is used and removed by :meth:`close`. ``port``: as of ``raftkv up``;
    ``addresses``: where each node listens, for clients and for nodes; without either, free ports are found.
    ``node`` and ``raft``: keys of those sections of a node's configuration, for instance ``node={"reads": "quorum"}``.
    ``dial[a, b]``: address at which node a reaches node b, which may join later, so that a proxy can stand between
    them. ``metrics``: the nodes serve metrics and probes (:meth:`metrics_address`). ``secure``: all is encrypted, nodes
    and clients have certificates (:attr:`tls`). ``users``: once the cluster has started, it serves its first user only
    (:attr:`token`), and those whom that one makes. ``raftkv up --secure`` does both.
    ``main``: the module that is run as a node, to run one with faults planted or instrumented; it gets the arguments of
    the command ``raftkv``. ``environment``: variables of the nodes' processes besides those of this one. Both hold for
    all starts by this object; the folder does not remember them. Raises ConfigError for options that do not fit
    together.
    """

    def __init__(
        self,
        nodes: int = 3,
        groups: int = DEFAULT_GROUPS,
        replicas: int | None = None,
        *,
        slots: int = DEFAULT_SLOTS,
        folder: str | Path | None = None,
        port: int | None = None,
        addresses: Sequence[tuple[str, str]] | None = None,
        node: Mapping[str, Any] | None = None,
        raft: Mapping[str, Any] | None = None,
        dial: Mapping[tuple[int, int], str] | None = None,
        metrics: bool = False,
        secure: bool = False,
        users: bool = False,
        main: str = MAIN,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        launch = Launch(main, dict(environment or {}))
        self._temporary = folder is None
        self._metrics = metrics
        self._users = users
        self._node_options = dict(node or {})
        self.folder = Path(tempfile.mkdtemp(prefix="raftkv-") if folder is None else folder).absolute()
        try:
            places, monitors = _places(nodes, port, addresses)
            self._processes = LocalProcesses.open(self.folder, launch) or LocalProcesses.create(
                self.folder,
                new_shape(places, groups, min(3, nodes) if replicas is None else replicas, slots),
                node_options=node,
                raft_options=raft,
                dial=dial,
                metrics=monitors if metrics else None,
                launch=launch,
                secure=secure,
            )
        except BaseException:
            self._clean()
            raise

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for name, text in self.logs().items():
                print(f"--- {name}\n{text}", file=sys.stderr)  # noqa: T201
        self.close()

    @property
    def endpoints(self) -> str:
        """Addresses for clients, separated by commas."""
        return self._processes.endpoints

    @property
    def tls(self) -> TLS | None:
        """What clients of a ``secure`` cluster need, for ``raftkv.Client(cluster.endpoints, tls=cluster.tls)``."""
        return self._processes.tls

    @property
    def token(self) -> str | None:
        """Of the first user of a cluster with ``users``, who may do everything."""
        return self._processes.token

    @property
    def url(self) -> str:
        """The cluster for :meth:`raftkv.Client.from_url`: with TLS if it is ``secure``, with its token if it has
        ``users``."""
        tls, token = self.tls, self.token
        where = self.endpoints if token is None else f"{quote(token, safe='')}@{self.endpoints}"
        if tls is None:
            return f"raftkv://{where}"
        return f"raftkvs://{where}?{urlencode({'ca': tls.ca, 'cert': tls.cert, 'key': tls.key})}"

    @property
    def nodes(self) -> list[int]:
        """Ids of the nodes."""
        return [node.id for node in self._processes.nodes]

    @property
    def cluster_id(self) -> str:
        """The cluster's id, a UUID."""
        return self._processes.shape.cluster_id

    def address(self, node: int) -> str:
        """Address of ``node`` for clients."""
        return self._processes.node(node).address

    def peer_address(self, node: int) -> str:
        """Address of ``node`` for the other nodes."""
        return self._processes.node(node).peer_address

    def metrics_address(self, node: int) -> str:
        """Where ``node`` serves ``/metrics``, ``/livez`` and ``/readyz``. Raises LocalError if it does not."""
        address = self._processes.node(node).metrics()
        if address is None:
            raise LocalError(f"node {node} serves no metrics: make the cluster with metrics=True")
        return address

    def pid(self, node: int) -> int | None:
        """Process id of ``node``, None if it does not run."""
        process = self._processes.node(node).process()
        return process.pid if process else None

    def add_node(
        self,
        timeout: float = READY_TIMEOUT,
        *,
        dial: Mapping[int, str] | None = None,
        addresses: tuple[str, str] | None = None,
    ) -> int:
        """Start a node that joins the running cluster and wait until it serves; its id. It holds no replicas yet.

        ``dial``: node id -> address at which it reaches that node, from its first link on. ``addresses``: where it
        listens for clients and for nodes; without them, free ports are found. The cluster's folder remembers it. Raises
        ConfigError, LocalError, JoinError, or Unavailable if no node takes it in.
        """
        places = None if addresses is None else Places(*addresses)
        node = add_node(
            self._processes,
            node_options=self._node_options,
            dial=dial,
            places=places,
            metrics=self._metrics,
            timeout=timeout,
        )
        return node.id

    def start(self, timeout: float = READY_TIMEOUT) -> None:
        """Start every node that does not run and wait until all serve. Raises LocalError with the end of a log."""
        self._processes.start_missing()
        self.wait_ready(timeout)
        if self._users:
            self._processes.bootstrap()

    def stop(self, timeout: float = STOP_TIMEOUT) -> dict[int, bool]:
        """Stop all nodes; the data stay. Node -> whether it ended by itself within ``timeout`` seconds."""
        return self._processes.stop(timeout)

    def close(self) -> None:
        """Kill what still runs and remove the temporary folder."""
        for node in self._processes.nodes:
            node.kill()
            node.pid_file.remove()
        self._clean()

    def stop_node(self, node: int, timeout: float = STOP_TIMEOUT) -> bool:
        """SIGTERM and wait. Whether the node ended by itself within ``timeout`` seconds."""
        return self._processes.node(node).stop(timeout)

    def kill(self, node: int) -> None:
        """SIGKILL: what was not on disk is lost as in a crash of the process."""
        self._processes.node(node).kill()

    def kill_all(self) -> None:
        """SIGKILL to all nodes before any of them is waited for."""
        self._processes.kill()

    def restart(self, node: int, timeout: float = READY_TIMEOUT, *, wait: bool = True) -> None:
        """Start ``node`` again (after killing it if it still runs) and, if ``wait``, wait until it serves."""
        target = self._processes.node(node)
        target.kill()
        target.start()
        if wait:
            self._processes.wait_ready(timeout, [target])

    def pause(self, node: int) -> None:
        """SIGSTOP: the process stands still, its connections stay open."""
        self._processes.node(node).pause()

    def resume(self, node: int) -> None:
        """SIGCONT after :meth:`pause`."""
        self._processes.node(node).resume()

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Wait until every node serves. Raises LocalError."""
        self._processes.wait_ready(timeout)

    def leader(self, group: int, timeout: float = READY_TIMEOUT) -> int:
        """The node that leads ``group``; waits for one up to ``timeout`` seconds, then raises LocalError."""
        clock = SystemClock()
        end = clock.now() + timeout
        while (leader := self._processes.leader(group)) is None:
            if clock.now() >= end:
                raise LocalError(f"group {group} had no leader for {timeout:g} s")
            pause(_POLL)
        return leader

    def status(self) -> dict[str, Any]:
        """What ``raftkv status -o json`` prints."""
        return self._processes.status()

    def log(self, node: int, lines: int = 50) -> str:
        """The last lines of the node's log."""
        return self._processes.node(node).log_tail(lines)

    def logs(self, lines: int = 30) -> dict[str, str]:
        """The last lines of every node's log, by a name for people."""
        return {f"node {node.id} ({node.log})": node.log_tail(lines) for node in self._processes.nodes}

    def data_dir(self, node: int) -> Path:
        """The data folder of ``node``."""
        return self._processes.node(node).data

    def _clean(self) -> None:
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def _places(
    nodes: int, port: int | None, addresses: Sequence[tuple[str, str]] | None
) -> tuple[tuple[Place, ...], dict[int, str]]:
    """Where the nodes listen, and where each of them may serve metrics."""
    if nodes < 1:
        raise LocalError(f"a cluster needs at least 1 node, not {nodes}")
    at = [f"127.0.0.1:{port}" for port in free_ports(3 * nodes)]
    monitors = {i + 1: at[2 * nodes + i] for i in range(nodes)}
    if port is not None:
        return places_from(port, nodes), monitors
    pairs = addresses or [*zip(at[:nodes], at[nodes : 2 * nodes], strict=True)]
    if len(pairs) != nodes:
        raise LocalError(f"{len(pairs)} addresses are given for {nodes} nodes")
    return tuple(Place(i, *pair) for i, pair in enumerate(pairs, 1)), monitors
