"""What nodes say of themselves, and what that makes a local cluster, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from raftkv.api.credentials import METADATA, authorization
from raftkv.api.messages import status_of
from raftkv.api.status import NodeStatus, ReplicaStatus, Role
from raftkv.client.tls import TLS
from raftkv.local.node import LocalNode
from raftkv.local.process import Process
from raftkv.node.config import NodeConfig
from raftkv.tls import node_name
from raftkv.v1 import admin_pb2, admin_pb2_grpc

_TIMEOUT: Final = 1.0


def probe(
    address: str, timeout: float = _TIMEOUT, tls: TLS | None = None, token: str | None = None
) -> NodeStatus | None:
    """Ask the node at ``address`` for its status; None if it does not answer within ``timeout`` seconds.

    Raises ConfigError if a file of ``tls`` cannot be read.
    """
    shown = None if token is None else ((METADATA, authorization(token)),)
    with _channel(address, tls) as channel:
        ask = admin_pb2_grpc.AdminStub(channel).GetStatus
        try:
            return status_of(ask(admin_pb2.GetStatusRequest(), timeout=timeout, metadata=shown))
        except grpc.RpcError:
            return None


def pulse(address: str, timeout: float = _TIMEOUT, tls: TLS | None = None) -> bool | None:
    """Whether the node at ``address`` is ready; None if it does not answer. It tells that to everybody.

    Raises ConfigError as :func:`probe`.
    """
    with _channel(address, tls) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return None
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str, tls: TLS | None) -> grpc.Channel:
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    credentials = tls.read()
    return grpc.secure_channel(address, credentials.of_channel(), options=[*options, *credentials.options()])


def own_tls(config: NodeConfig) -> TLS | None:
    """What somebody on the machine of the node of ``config`` speaks to it with: its own certificate."""
    security = config.security
    if security.ca_file is None:
        return None
    return TLS(security.ca_file, security.cert_file, security.key_file, node_name(config.cluster.id, config.node.id))


def why_not_ready(status: NodeStatus | None) -> str:
    """For people, of a node whose answer is ``status``."""
    if status is None:
        return "does not answer"
    if not status.replicas:
        return "does not know the shard map yet"
    without = [str(r.group) for r in status.replicas if not r.leader]
    return f"no leader known for groups {', '.join(without)}" if without else "not ready"


def cluster_status(
    nodes: Sequence[LocalNode], removed: frozenset[int], tls: TLS | None, token: str | None
) -> dict[str, Any]:
    """Nodes with pid, address and state, groups with leader, term and indexes, as they say now."""
    seen = {node.id: (node.process(), probe(node.address, tls=tls, token=token)) for node in nodes}
    reports = [_node_status(node, *seen[node.id], node.id in removed) for node in nodes]
    replicas = [(i, r) for i, (process, s) in seen.items() if process and s for r in s.replicas]
    ids = sorted({replica.group for _, replica in replicas})
    own = frozenset(seen)
    groups = [_group_status(group, [(i, r) for i, r in replicas if r.group == group], own) for group in ids]
    return {
        "ready": all(report["state"] in ("ready", "removed") for report in reports),
        "nodes": reports,
        "groups": groups,
    }


def _node_status(node: LocalNode, process: Process | None, status: NodeStatus | None, removed: bool) -> dict[str, Any]:
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


def _group_status(group: int, replicas: Sequence[tuple[int, ReplicaStatus]], own: frozenset[int]) -> dict[str, Any]:
    """``own``: the nodes of this cluster's folder, of which only what they say themselves counts."""
    leaders = [(r.term, i, r) for i, r in replicas if r.role is Role.LEADER]
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
            "role": r.role.name.lower(),
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
