"""Guarantee: a node under a supervisor says when it takes calls and when it ends, is configured by variables, and logs
what programs read."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import raftkv
from raftkv.local.ports import free_ports
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


def test_a_node_as_a_service(tmp_path: Path) -> None:
    client, peers = (f"127.0.0.1:{port}" for port in free_ports(2))
    (tmp_path / "node.toml").write_text(
        '[cluster]\nid = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"\n[node]\ndata_dir = "data"\nlog_format = "text"\n'
    )
    (tmp_path / "peer.secret").write_text("known to this node alone")
    settings = {
        "CLUSTER_REPLICAS": "1",
        "CLUSTER_GROUPS": "1",
        "NODE_ID": "1",
        "NODES": f"1={client}/{peers}",
        "NODE_LOG_FORMAT": "json",
        "NODE_LOGLEVEL": "debug",
        "SECURITY_SECRET_FILE": "peer.secret",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(PATIENCE)
        environment = {
            **os.environ,
            **{f"RAFTKV_{name}": value for name, value in settings.items()},
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "raftkv", "serve", "--config", str(tmp_path / "node.toml")]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as node:
            try:
                assert supervisor.recv(100) == b"READY=1"
                with raftkv.Client(client, timeout=PATIENCE) as kv:
                    kv.put("k", b"v")
                node.send_signal(signal.SIGTERM)
                assert supervisor.recv(100) == b"STOPPING=1"
                _, said = node.communicate(timeout=PATIENCE)
            finally:
                node.kill()
    assert node.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert {line["node"] for line in lines} == {1}
    assert lines[-1]["message"] == "stopped"
    told = {line["message"]: line["level"] for line in lines}
    assert told["variables that set nothing, as they name no setting: RAFTKV_NODE_LOGLEVEL"] == "warning"
    assert "debug" not in told.values()
