"""A join that fails its checks leaves no member behind, and nothing that stands in the way of the next one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.main import run
from raftkv.errors import ConfigError
from raftkv.local.joining import CONFIG, JoinError, Places, join
from raftkv.local.ports import free_ports
from raftkv.node.config import load_config
from raftkv.node.credentials import VARIABLE
from shards.map import Node
from tests.admin_world import World, world_of


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes prove to each other that they know."""
    monkeypatch.setenv(VARIABLE, "known to all nodes")


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(nodes=3, groups=1) as made:
        yield made


@pytest.fixture
def at() -> list[str]:
    """Addresses that are free."""
    return [f"127.0.0.1:{port}" for port in free_ports(6)]


def members(world: World) -> list[int]:
    return [node.id for node in world.map.nodes]


@pytest.mark.parametrize(
    ("changed", "options", "told"),
    [
        ({"peer_address": "address"}, {}, "is also --address"),
        ({"peer_listen": "listen"}, {}, "node.peer_listen: "),
        ({}, {"metrics": "listen"}, "node.metrics: "),
        ({}, {"reads": "leases"}, "node.reads"),
        ({}, {"log_level": "loud"}, "node.log_level"),
        ({}, {"data_dirs": "d"}, "unknown key"),
    ],
)
def test_what_does_not_fit_together_is_told_before_the_cluster_is_asked(
    world: World, at: list[str], tmp_path: Path, changed: dict[str, str], options: dict[str, Any], told: str
) -> None:
    given = dict(zip(("address", "peer_address", "listen", "peer_listen"), at, strict=False))
    wrong = {**given, **{key: given[value] for key, value in changed.items()}}
    options = {key: given.get(value, value) for key, value in options.items()}
    with pytest.raises(ConfigError) as caught:
        join(world.endpoints, tmp_path, Places(**wrong), node_options=options, token=world.join_token())
    assert told in str(caught.value)
    assert members(world) == [1, 2, 3]
    # The same folder, set right, is the next node.
    assert join(world.endpoints, tmp_path, Places(**given), token=world.join_token()).node.id == 4


def test_a_bad_dial_leaves_no_member_behind(world: World, at: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dial\.1"):
        join(world.endpoints, tmp_path, Places(*at[:2]), dial={1: "a..b:1"}, token=world.join_token())
    assert members(world) == [1, 2, 3]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_port_in_use_leaves_no_member_behind(world: World, at: list[str], tmp_path: Path, which: int) -> None:
    host, port = at[which].split(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(JoinError, match=f"cannot listen at {at[which]}: "),
    ):
        join(world.endpoints, tmp_path, Places(*at[:2]), node_options={"metrics": at[2]}, token=world.join_token())
    assert members(world) == [1, 2, 3]


@pytest.mark.parametrize("given", ["kv-4:7449", "KV-4:7449"])
def test_an_address_of_another_node_leaves_no_member_and_no_note(
    world: World, at: list[str], tmp_path: Path, given: str
) -> None:
    world.add_node("kv-4:7449", "kv-4:7549", "ab" * 16)
    with pytest.raises(JoinError, match=f"node 4 has the address {given} already"):
        join(world.endpoints, tmp_path, Places(at[0], given, peer_listen=at[1]), token=world.join_token())
    assert members(world) == [1, 2, 3, 4]
    assert not (tmp_path / "join.json").exists()
    assert join(world.endpoints, tmp_path, Places(*at[:2]), token=world.join_token()).node.id == 5


def test_a_folder_with_the_log_of_another_node_is_refused_first(world: World, at: list[str], tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    with pytest.raises(JoinError, match="use an empty folder"):
        join(world.endpoints, tmp_path, Places(*at[:2]), token=world.join_token())
    (tmp_path / "wal").rmdir()
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(JoinError, match=r"identity\.json: damaged"):
        join(world.endpoints, tmp_path, Places(*at[:2]), token=world.join_token())
    assert members(world) == [1, 2, 3]


def test_addresses_noted_by_an_earlier_version_are_checked(world: World, at: list[str], tmp_path: Path) -> None:
    note = {"format": 1, "incarnation": "ab" * 16, "address": "kv-4..prod:7449", "peer_address": at[1]}
    (tmp_path / "join.json").write_text(json.dumps(note))
    with pytest.raises(ConfigError, match=r"--address: address 'kv-4\.\.prod:7449'"):
        join(world.endpoints, tmp_path, Places(), token=world.join_token())
    config = join(world.endpoints, tmp_path, Places(*at[:2]), token=world.join_token())
    assert (config.node.id, world.map.node(4).incarnation) == (4, "ab" * 16)


def test_addresses_that_are_refused_do_not_take_the_place_of_those_taken_in(
    world: World, at: list[str], tmp_path: Path
) -> None:
    note = {"format": 1, "incarnation": "ab" * 16, "address": at[0], "peer_address": at[1]}
    (tmp_path / "join.json").write_text(json.dumps(note))
    world.add_node(at[0], at[1], "ab" * 16)
    with pytest.raises(JoinError, match=f"node 4 joined .* with other addresses, {at[0]} and {at[1]}"):
        join(world.endpoints, tmp_path, Places(at[2], at[3]), token=world.join_token())
    assert join(world.endpoints, tmp_path, Places(), token=world.join_token()).node.address == at[0]
    assert members(world) == [1, 2, 3, 4]


def test_what_is_in_the_map_already_keeps_nobody_from_joining(world: World, at: list[str], tmp_path: Path) -> None:
    """Earlier versions took any text for an address, and the same one twice."""
    bad = [("kv-4..prod:7449", "h:1"), ("x", "y"), ("h:2", "h:2"), ("0.0.0.0:7401", "h:3"), ("h:4", world.address(1))]
    shard_map = world.map
    for number, addresses in enumerate(bad, start=4):
        shard_map = shard_map.with_node(Node(number, *addresses, f"{number:032x}"))
    world.meta.state = replace(world.meta.state, map=shard_map, last_node=8)
    config = join(world.endpoints, tmp_path, Places(*at[:2]), token=world.join_token())
    assert config.node.id == 9
    assert [peer.id for peer in load_config(tmp_path / CONFIG).nodes] == [1, 2, 3, 9]
    assert members(world) == list(range(1, 10)), "the map itself is left alone"


@pytest.mark.parametrize("option", ["--address", "--peer-address", "--listen", "--peer-listen"])
@pytest.mark.parametrize("text", ["kv-4..prod:7449", "x", "127.0.0.1:99999", "a b:1", "http://h:1"])
def test_the_command_calls_no_address_wrong_usage(
    world: World, at: list[str], tmp_path: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--join", world.endpoints, "--data-dir", str(tmp_path / "new"), "--address", at[0]]
    assert run([*command, option, text]) == 2
    assert f"Invalid value for '{option}': address '{text}'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert members(world) == [1, 2, 3]
