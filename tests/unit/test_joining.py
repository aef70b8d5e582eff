"""A data folder joins a cluster once, whatever is interrupted, and what cannot join is told why."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from raftkv.cli.main import run
from raftkv.errors import ConfigError, DataFolderInUse, StorageError, Unavailable
from raftkv.local import joining
from raftkv.local.cluster import LocalProcesses
from raftkv.local.joining import CONFIG, JoinError, Places, join
from raftkv.local.ports import free_ports
from raftkv.local.shape import Place, new_shape
from raftkv.node.config import NodeConfig, load_config
from raftkv.node.credentials import VARIABLE
from raftkv.storage.folder import DataFolder
from raftkv.storage.fs import OsFileSystem
from shards.map import ShardMap
from tests.admin_world import CLUSTER, SLOTS, World, world_of


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes prove to each other that they know."""
    monkeypatch.setenv(VARIABLE, "known to all nodes")


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(nodes=3, groups=2) as made:
        yield made


@pytest.fixture
def places() -> Places:
    first, second = free_ports(2)
    return Places(f"127.0.0.1:{first}", f"127.0.0.1:{second}")


def test_a_folder_becomes_a_node_of_the_cluster(world: World, places: Places, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "node"
    config = join(world.endpoints, folder, places, token=world.join_token())
    assert config == load_config(folder / CONFIG)
    assert (config.node.id, config.node.joined, config.node.data_dir) == (4, True, str(folder))
    assert (config.node.address, config.node.listen) == (places.address, places.address)
    assert (config.node.peer_address, config.node.peer_listen) == (places.peer_address, places.peer_address)
    cluster = config.cluster
    assert (cluster.id, cluster.slots, cluster.groups, cluster.replicas) == (CLUSTER, SLOTS, 2, 3)
    assert config.raft.election_min == 0.5
    assert [peer.id for peer in config.nodes] == [1, 2, 3, 4]

    member = world.map.node(4)
    data = DataFolder.open(OsFileSystem(), str(folder), CLUSTER, 4, random.Random(1))
    assert data.incarnation == member.incarnation
    assert len(bytes.fromhex(data.incarnation)) == 16
    saved = data.load_map()
    assert saved is not None
    # Founders and incarnations too: replicas and links start from them.
    assert ShardMap.from_wire(msgpack.unpackb(saved)) == world.map
    data.close()


def test_once_joined_it_is_not_asked_for_again(world: World, places: Places, tmp_path: Path) -> None:
    config = join(world.endpoints, tmp_path, places, token=world.join_token())
    epoch = world.map.epoch
    assert join(world.endpoints, tmp_path, Places(), token=world.join_token()) == config
    assert join(world.endpoints, tmp_path, places, token=world.join_token()) == config
    assert join("127.0.0.1:1", tmp_path, places) == config
    assert world.map.epoch == epoch
    with pytest.raises(ConfigError, match=r"joined with --address .*, not 127\.0\.0\.1:9"):
        join(world.endpoints, tmp_path, Places("127.0.0.1:9"), token=world.join_token())


@pytest.mark.parametrize("step", ["_take_in", "_settle", "render"])
def test_an_interrupted_join_goes_on_as_the_same_node(
    world: World, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(joining, step, stop)
        with pytest.raises(KeyboardInterrupt):
            join(world.endpoints, tmp_path, places, token=world.join_token())
    # The addresses are remembered with the incarnation.
    config = join(world.endpoints, tmp_path, Places(), token=world.join_token())
    assert (config.node.id, config.node.address) == (4, places.address)
    assert [node.id for node in world.map.nodes] == [1, 2, 3, 4]


def test_nobody_there(tmp_path: Path, places: Places) -> None:
    with pytest.raises(Unavailable, match="no node could answer"):
        join("127.0.0.1:1", tmp_path, places, timeout=0.3)
    assert not (tmp_path / CONFIG).exists()


def test_an_address_of_another_node_is_refused(world: World, places: Places, tmp_path: Path) -> None:
    world.add_node(str(places.address), "127.0.0.1:99", "ab" * 16)
    with pytest.raises(JoinError, match="node 4 has the address"):
        join(world.endpoints, tmp_path, places, token=world.join_token())


def test_a_port_in_use_is_told_before_the_cluster_has_a_member_more(
    world: World, places: Places, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(JoinError, match=f"cannot listen at {used}"):
            join(world.endpoints, tmp_path, Places(places.address, used), token=world.join_token())
    assert len(world.map.nodes) == 3


def test_a_folder_of_another_cluster_is_refused(world: World, places: Places, tmp_path: Path) -> None:
    join(world.endpoints, tmp_path, places, token=world.join_token())
    with world_of(nodes=1, groups=1, cluster_id="9d4f7c52-9a3e-4a8e-8c0f-0a3a1b2c3d4e") as other:
        with pytest.raises(JoinError, match=f"belongs to cluster {CLUSTER}, but at .* is cluster 9d4f"):
            join(other.endpoints, tmp_path, places, token=other.join_token())
        # Also where it was interrupted before it had a configuration.
        (tmp_path / CONFIG).unlink()
        with pytest.raises(JoinError, match="belongs to another cluster"):
            join(other.endpoints, tmp_path, places, token=other.join_token())
        assert len(other.map.nodes) == 1


def test_a_folder_of_a_founder_is_refused(world: World, places: Places, tmp_path: Path) -> None:
    DataFolder.open(OsFileSystem(), str(tmp_path), CLUSTER, 2, random.Random(1)).close()
    with pytest.raises(JoinError, match="is already a node's data folder"):
        join(world.endpoints, tmp_path, places, token=world.join_token())


def test_a_removed_node_does_not_come_back(world: World, places: Places, tmp_path: Path) -> None:
    join(world.endpoints, tmp_path, places, token=world.join_token())
    world.command("remove node", 4)
    with pytest.raises(JoinError, match="node 4 has been removed"):
        join(world.endpoints, tmp_path, places, token=world.join_token())


def test_two_at_a_time_are_refused(world: World, places: Places, tmp_path: Path) -> None:
    lock = OsFileSystem().lock(str(tmp_path / "join.lock"))
    with pytest.raises(DataFolderInUse):
        join(world.endpoints, tmp_path, places, token=world.join_token())
    lock.release()


def test_the_peer_port_is_a_hundred_above(world: World, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    config = join(world.endpoints, tmp_path, Places(f"127.0.0.1:{port}"), token=world.join_token())
    assert config.node.peer_address == f"127.0.0.1:{port + 100}"
    assert joining._peer_address("[::1]:7404") == "[::1]:7504"
    with pytest.raises(ConfigError, match="--peer-address is missing"):
        joining._peer_address("a:65500")


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (Places(), "--address HOST:PORT is missing"),
        (Places("nonsense"), "--address: "),
        (Places("0.0.0.0:7404"), "--address: address '0.0.0.0:7404': not dialable"),
        (Places("a:7404", "[::]:7504"), "not dialable"),
        (Places("127.0.0.1:7404", "127.0.0.1:7405", "x"), "'x'"),
    ],
)
def test_bad_addresses(tmp_path: Path, places: Places, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        join("127.0.0.1:1", tmp_path, places, timeout=0.2)
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}'])
def test_a_damaged_note_is_told(tmp_path: Path, places: Places, text: str) -> None:
    (tmp_path / "join.json").write_text(text)
    with pytest.raises(JoinError, match=r"join\.json"):
        join("127.0.0.1:1", tmp_path, places, timeout=0.2)


def test_another_incarnation_is_not_taken_for_the_one_that_was_drawn(tmp_path: Path) -> None:
    fs = OsFileSystem()
    DataFolder.open(fs, str(tmp_path), "c", 1, random.Random(1), "ab" * 16).close()
    DataFolder.open(fs, str(tmp_path), "c", 1, random.Random(1), "ab" * 16).close()
    DataFolder.open(fs, str(tmp_path), "c", 1, random.Random(1)).close()
    with pytest.raises(StorageError, match="is abab"):
        DataFolder.open(fs, str(tmp_path), "c", 1, random.Random(1), "cd" * 16)


# The command


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--config", "f", "--join", "a:1"],
        ["--join", "a:1"],
        ["--config", "f", "--address", "a:1"],
        ["--config", "f", "--data-dir", "d"],
    ],
)
def test_wrong_usage_of_serve(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", *arguments]) == 2
    assert "Error: " in capsys.readouterr().err


def test_serve_joins_and_serves(
    world: World,
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served: list[int] = []

    def serve(config: NodeConfig, load: Callable[[], NodeConfig]) -> int:
        served.append(config.node.id)
        assert load() == config, "as SIGHUP reads it again"
        return 0

    monkeypatch.setattr("raftkv.node.main.serve", serve)
    command = ["serve", "--join", world.endpoints, "--data-dir", str(tmp_path), "--address", str(places.address)]
    command += ["--token", world.join_token()]
    assert run([*command, "--peer-address", str(places.peer_address)]) == 0
    assert "joined cluster" in capsys.readouterr().err
    assert run(command) == 0
    assert capsys.readouterr().err == ""
    assert served == [4, 4]


# Local clusters


def test_a_local_cluster_remembers_who_joined_and_who_was_removed(world: World, tmp_path: Path) -> None:
    nodes = [Place(node.id, node.address, node.peer_address) for node in world.map.nodes]
    cluster = LocalProcesses.create(tmp_path, new_shape(nodes, 2, 3))
    (tmp_path / "node-4").mkdir()
    cluster.adopt(Place(4, "127.0.0.1:1", "127.0.0.1:2"))
    found = LocalProcesses.open(tmp_path)
    assert found is not None
    assert [node.id for node in found.nodes] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "cluster.json").read_text())["nodes"][3]["address"] == "127.0.0.1:1"
    assert found.removed() == frozenset()

    node = world.join()
    world.command("remove node", node)
    data = DataFolder.open(OsFileSystem(), str(found.nodes[1].data), CLUSTER, 2, random.Random(1))
    data.save_map(msgpack.packb(world.map.to_wire()))
    assert found.removed() == {4}
    assert [entry["state"] for entry in found.status()["nodes"]][3] == "removed"
    data.close()
