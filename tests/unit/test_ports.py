"""Ports for servers that are yet to start: of several processes that look for some at once, no two get the same."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from raftkv.local import ports
from raftkv.local.ports import NoFreePort, free_ports, port_problem

LOOK = "from raftkv.local.ports import free_ports; print(*free_ports(300), flush=True); input()"


def test_processes_side_by_side_get_ports_of_their_own() -> None:
    """As long as they live, although nobody listens yet; their places to begin the search lie close together."""
    ours = set(free_ports(300))
    others = [
        subprocess.Popen([sys.executable, "-c", LOOK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = [ours]
    for one in others:
        assert one.stdout is not None
        found.append({int(port) for port in one.stdout.readline().split()})
    for one in others:
        one.communicate("\n")
        assert one.returncode == 0
    assert [len(some) for some in found] == [300] * 4
    assert len(set.union(*found)) == 1200


def test_a_port_in_use_is_not_given() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        assert port_problem(f"127.0.0.1:{port}") is not None
        again = ports._Ports()
        again._next = port - ports._LOW
        assert port not in again.take(5)


def test_one_process_gets_each_port_once_until_all_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_HIGH", ports._LOW + 40)
    monkeypatch.setattr(ports, "port_problem", lambda _: None)
    mine = ports._Ports()
    monkeypatch.setattr(mine, "_lock", lambda _: True)
    given = [port for _ in range(4) for port in mine.take(10)]
    assert len(set(given)) == 40
    assert mine.take(10) == given[:10]
    with pytest.raises(NoFreePort, match="there are no 41 free ports"):
        mine.take(41)
