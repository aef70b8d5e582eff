"""Guarantee: whoever started a node with NOTIFY_SOCKET hears of it, and nothing of that can end the node."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from raftkv.node.supervisor import tell


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive_as_datagrams(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"\0raftkv-{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(name)
        supervisor.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name.replace("\0", "@"))
        tell("READY=1")
        tell("STOPPING=1")
        assert [supervisor.recv(100), supervisor.recv(100)] == [b"READY=1", b"STOPPING=1"]


def test_one_that_does_not_listen_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell("READY=1")
    assert caplog.messages == []
    for address in (str(tmp_path / "nobody"), "host:1", "x" * 200):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        tell("READY=1")
    assert len(caplog.messages) == 3
    assert all(line.startswith("the supervisor cannot be told READY=1: ") for line in caplog.messages)
