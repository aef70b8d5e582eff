"""Commands touch only processes that they started, remember a cluster's shape, and refuse what does not fit it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv.cli.main import run
from raftkv.errors import ConfigError
from raftkv.local.cluster import LocalProcesses, folder_lock
from raftkv.local.node import LocalError
from raftkv.local.ports import free_ports, port_problem
from raftkv.local.process import PidFile, Process
from raftkv.local.shape import Place, new_shape, places_from
from raftkv.node.config import load_config
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE


def test_a_reused_pid_is_never_taken_for_the_process_that_had_it(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        real = Process.of(child.pid)
        assert real is not None
        assert real.alive()
        other = Process(child.pid, real.token + "0")
        assert not other.alive()
        assert not other.signal(signal.SIGKILL)
        assert child.poll() is None

        file = PidFile(tmp_path / "pid")
        file.write(real)
        assert file.read() == real
        assert real.signal(signal.SIGKILL)
        assert real.wait(PATIENCE)
        # A zombie until it is waited for: it does not live.
        assert Process.of(child.pid) is None
    finally:
        child.communicate()


def test_a_damaged_pid_file_names_no_process(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    assert PidFile(path).read() is None
    for text in ("", "17", '{"pid": 1}', "\0"):
        path.write_text(text)
        assert PidFile(path).read() is None


def test_node_i_takes_its_ports_from_the_first_one_on() -> None:
    places = places_from(7401, 3)
    assert [(p.id, p.address, p.peer_address) for p in places] == [
        (1, "127.0.0.1:7401", "127.0.0.1:7501"),
        (2, "127.0.0.1:7402", "127.0.0.1:7502"),
        (3, "127.0.0.1:7403", "127.0.0.1:7503"),
    ]
    with pytest.raises(ConfigError, match="ports of 3 nodes"):
        places_from(65434, 3)


def test_a_cluster_folder_is_read_back_and_its_configurations_load(tmp_path: Path) -> None:
    shape = new_shape(places_from(7401, 3), groups=2, replicas=3)
    dial = {(1, 2): "127.0.0.1:9", (1, 4): "127.0.0.1:8"}
    made = LocalProcesses.create(tmp_path, shape, node_options={"reads": "quorum"}, dial=dial)
    found = LocalProcesses.open(tmp_path)
    assert found is not None
    assert found.shape == shape
    assert found.endpoints == "127.0.0.1:7401,127.0.0.1:7402,127.0.0.1:7403"
    configs = [load_config(node.config) for node in made.nodes]
    assert [config.node.id for config in configs] == [1, 2, 3]
    assert {config.node.reads for config in configs} == {"quorum"}
    assert configs[0].dial_addresses() == {2: "127.0.0.1:9", 3: "127.0.0.1:7503"}
    assert configs[0].dial_address(4, "127.0.0.1:7504") == "127.0.0.1:8"
    assert configs[1].dial == {}
    assert configs[1].node.data_dir == str(tmp_path.resolve() / "node-2" / "data")


@pytest.mark.parametrize(
    ("dial", "told"),
    [
        ({(4, 1): "127.0.0.1:9"}, "dial: there is no node 4 yet"),
        ({(1, 0): "127.0.0.1:9"}, r"node 1: dial\.0"),
        ({(1, 2): "127.0.0.1"}, r"node 1: dial\.2"),
    ],
)
def test_addresses_that_no_node_could_use_are_refused_and_nothing_is_written(
    tmp_path: Path, dial: dict[tuple[int, int], str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        LocalProcesses.create(tmp_path / "data", new_shape(places_from(7401, 3), groups=2, replicas=3), dial=dial)
    assert not (tmp_path / "data").exists()


def test_a_damaged_cluster_file_is_refused(tmp_path: Path) -> None:
    assert LocalProcesses.open(tmp_path) is None
    path = LocalProcesses.shape_file(tmp_path)
    for text in ("", "[]", '{"format": 1}', '{"format": 2}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"cluster\.json: "):
            LocalProcesses.open(tmp_path)


def test_a_name_of_ipv6_only_can_be_listened_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        if host == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        assert port_problem(f"six:{port}") == "Address already in use"
    assert port_problem(f"six:{port}") is None
    assert port_problem(f"gone:{port}") == "Name or service not known"
    assert asked == ["six", "six", "gone"]


def test_a_port_in_use_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert port_problem(address) is not None
        free = free_ports(1)[0]
        shape = new_shape([Place(1, f"127.0.0.1:{free}", address)], groups=1, replicas=1)
        cluster = LocalProcesses.create(tmp_path, shape)
        with pytest.raises(LocalError, match="cannot listen at"):
            cluster.start_missing()
        assert not cluster.nodes[0].log.exists()
        assert cluster.nodes[0].process() is None


def test_up_on_a_port_in_use_does_not_bind_the_folder_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        port = taken.getsockname()[1]
        assert run(["up", "--data-dir", str(tmp_path), "--port", str(port), "--nodes", "1"]) == 1
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err
    assert LocalProcesses.open(tmp_path) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--nodes", "5"], "--nodes 3, not 5"),
        (["--groups", "4"], "--groups 2, not 4"),
        (["--replicas", "1"], "--replicas 3, not 1"),
        (["--port", "7411"], "--port 7401, not 7411"),
    ],
)
def test_up_refuses_another_shape_than_the_folder_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    LocalProcesses.create(tmp_path, new_shape(places_from(7401, 3), groups=2, replicas=3))
    assert run(["up", "--data-dir", str(tmp_path), *options]) == 1
    assert told in capsys.readouterr().err
    assert not list(tmp_path.glob("node-*/node.log"))


def test_more_replicas_than_nodes_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    assert run(["up", "--data-dir", str(folder), "--nodes", "2", "--replicas", "3"]) == 2
    assert "3 replicas of a group need" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("command", ["down", "status"])
def test_commands_on_a_folder_without_a_cluster_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run([command, "--data-dir", str(tmp_path / "none")]) == 1
    assert "there is no cluster in" in capsys.readouterr().err


def test_only_one_command_at_a_time_starts_or_stops_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LocalProcesses.create(tmp_path, new_shape(places_from(7401, 1), groups=1, replicas=1))
    with folder_lock(tmp_path):
        for command in ("up", "down"):
            assert run([command, "--data-dir", str(tmp_path)]) == 1
            assert "another command" in capsys.readouterr().err
    assert run(["down", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no node was running\n"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["up", "--data-dir", str(tmp_path / "file" / "data")]) == 1
    assert "file/data: cannot write there" in capsys.readouterr().err


def test_a_cluster_listens_where_it_is_told_to(tmp_path: Path) -> None:
    addresses = [("127.0.0.1:7001", "127.0.0.1:7101"), ("127.0.0.1:7002", "127.0.0.1:7109")]
    cluster = LocalCluster(2, folder=tmp_path / "a", addresses=addresses)
    assert [(cluster.address(node), cluster.peer_address(node)) for node in cluster.nodes] == addresses
    with pytest.raises(LocalError, match="2 addresses are given for 3 nodes"):
        LocalCluster(3, folder=tmp_path / "b", addresses=addresses)
    with pytest.raises(LocalError, match="no node 3"):
        cluster.address(3)
