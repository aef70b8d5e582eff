"""One more node for a local cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import to_builtins

from raftkv.addresses import parse_listen_address
from raftkv.files import write_atomically
from raftkv.local.cluster import READY_TIMEOUT, LocalProcesses, certify_node
from raftkv.local.joining import CONFIG, Places, has_begun, join, join_token
from raftkv.local.node import LocalError, LocalNode
from raftkv.local.ports import free_ports
from raftkv.local.shape import Place
from raftkv.node.config import NodeConfig, parse_config, render

_JOINING: Final = "node-joining"
"""The folder until the cluster has named the node. One that was left behind goes on."""


def add_node(
    cluster: LocalProcesses,
    *,
    node_options: Mapping[str, Any] | None = None,
    dial: Mapping[int, str] | None = None,
    places: Places | None = None,
    metrics: bool = False,
    timeout: float = READY_TIMEOUT,
) -> LocalNode:
    """Let a new node at ``places``, or on free ports, join the running ``cluster``, and wait until it serves.

    ``node_options``: keys of its configuration's section ``node``. ``dial``: node id -> address at which it reaches
    that node, from its first link on. ``metrics``: it serves them on a free port. Raises ConfigError, LocalError,
    JoinError, Unavailable.
    """
    folder = cluster.folder / _JOINING
    data = folder / "data"
    address, peer_address, monitor = _free_addresses(cluster)
    places = Places() if has_begun(data) else places or Places(address, peer_address)
    options = {**(node_options or {}), **({"metrics": monitor} if metrics else {})}
    secure = cluster.tls is not None
    # Who it is, and so its certificate, it does not know yet: for the time of joining it speaks as a client.
    security = {} if secure else cluster.security(0, cluster.folder, secure=False)
    config = join(
        cluster.endpoints,
        data,
        places,
        timeout,
        node_options=options,
        dial=dial,
        security=security,
        tls=cluster.tls,
        token=join_token(cluster.endpoints, timeout, cluster.tls, cluster.token),
    )
    place = Place(config.node.id, config.node.address, config.node.peer_address)
    try:
        if secure:
            certify_node(cluster, place)
        own = cluster.security(place.id, Path(".."), secure=secure)
        write_atomically(folder / "node.toml", render(_moved(config, options, dial or {}, own)))
        (data / CONFIG).unlink()
        folder.replace(cluster.folder / f"node-{place.id}")
    except OSError as error:
        raise LocalError(f"{folder}: cannot write there: {error.strerror or error}") from None
    node = cluster.adopt(place)
    node.start()
    cluster.wait_ready(timeout, [node])
    return node


def _free_addresses(cluster: LocalProcesses) -> list[str]:
    """Three addresses beside those of the cluster's nodes, also of nodes that do not run now."""
    used = [address for node in cluster.nodes for address in (node.address, node.peer_address, node.metrics())]
    taken = {parse_listen_address(address).port for address in used if address is not None}
    found = [port for port in free_ports(3 + len(taken)) if port not in taken]
    return [f"127.0.0.1:{port}" for port in found[:3]]


def _moved(
    config: NodeConfig, node_options: Mapping[str, Any], dial: Mapping[int, str], security: Mapping[str, Any]
) -> NodeConfig:
    """The configuration as a local cluster keeps it: beside the data folder."""
    raw = {**to_builtins(config), "dial": dict(dial), "security": dict(security)}
    raw["node"] = {**raw["node"], "data_dir": "data", **node_options}
    return parse_config(raw, f"node {config.node.id}")
