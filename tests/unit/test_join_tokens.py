"""Guarantee: with a join token one data folder joins, once, within an hour; without one nobody does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from raftkv.cli.main import run
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.users import Bootstrap
from raftkv.errors import Code
from raftkv.local.joining import JoinError, Places, join, join_token
from raftkv.local.ports import free_ports
from raftkv.node.credentials import VARIABLE
from raftkv.store.codec import pack, unpack
from raftkv.store.meta_commands import JOIN_TOKEN_MS, MAX_JOIN_TOKENS
from raftkv.store.meta_state import MetaState
from shards.map import META_GROUP
from tests.admin_world import World, world_of
from tests.unit.test_store_meta_commands import Meta


def digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def place(number: int) -> tuple[str, str, str]:
    return f"h:{100 + number}", f"p:{100 + number}", f"life {100 + number}"


# The meta group


def test_a_token_lets_one_folder_join_however_often_it_asks() -> None:
    meta = Meta(nodes=3)
    meta.do("add join token", digest("t"))
    assert meta.do("add node", *place(1), digest("t")) == 4
    assert meta.do("add node", *place(1), digest("t")) == 4
    assert meta.do("add node", *place(1), b"") == 4, "who has joined needs none"
    assert "was used already" in meta.refused("add node", *place(2), digest("t"))
    assert "does not know this join token" in meta.refused("add node", *place(2), digest("u"))
    assert "a join token is missing" in meta.refused("add node", *place(2), b"")
    meta.do("remove node", 4)
    assert "was used already" in meta.refused("add node", *place(1), digest("t")), "a removed node's folder neither"


def test_a_refusal_uses_no_token_up() -> None:
    meta = Meta(nodes=3)
    meta.do("add join token", digest("t"))
    assert "has the address" in meta.refused("add node", "h:1", "p:9", "life", digest("t"))
    assert meta.do("add node", *place(1), digest("t")) == 4


def test_a_token_expires_after_an_hour_of_group_time() -> None:
    meta = Meta(nodes=3)
    meta.do("add join token", digest("t"))
    made = meta.time
    meta.time = made + JOIN_TOKEN_MS - 20
    assert meta.store.check(meta.op("add node", *place(1), digest("t")), meta.time) is None
    meta.time = made + JOIN_TOKEN_MS
    told = meta.store.check(meta.op("add node", *place(1), digest("t")), meta.time)
    assert told is not None
    assert (told.code, "has expired" in told.detail) == (Code.CONDITION_FAILED, True)
    assert "has expired" in meta.refused("add node", *place(1), digest("t"))
    meta.do("add join token", digest("u"))
    assert list(meta.state.join_tokens) == [digest("u")], "what has expired is forgotten"
    assert meta.do("add node", *place(1), digest("u")) == 4


def test_tokens_that_nobody_uses_are_counted() -> None:
    meta = Meta(nodes=3)
    for number in range(MAX_JOIN_TOKENS):
        meta.do("add join token", digest(str(number)))
    assert f"{MAX_JOIN_TOKENS} join tokens are valid and not used yet" in meta.refused("add join token", digest("x"))
    meta.do("add join token", digest("0"))
    meta.do("add node", *place(1), digest("0"))
    meta.do("add join token", digest("x"))
    meta.time += JOIN_TOKEN_MS
    meta.do("add join token", digest("y"))
    assert len(meta.state.join_tokens) == 1


@pytest.mark.parametrize("wrong", [b"", b"short", "t" * 32, 7, None])
def test_a_token_is_told_by_its_digest_only(wrong: object) -> None:
    meta = Meta(nodes=3)
    assert meta.tell(meta.op("add join token", wrong)).code == Code.INVALID_ARGUMENT


def test_tokens_are_in_snapshots() -> None:
    meta = Meta(nodes=3)
    meta.do("add join token", digest("t"))
    meta.do("add node", *place(1), digest("t"))
    wire = unpack(pack(meta.state.to_wire()))
    assert MetaState.from_wire(wire) == meta.state
    assert "a join token is missing" in meta.refused("add node", *place(2))


def test_joins_by_the_hundred_do_not_get_into_the_log() -> None:
    meta = Meta(nodes=3)
    state = meta.state
    rng = random.Random(1)
    for number in range(100):
        arguments = [*place(number), *([] if number % 3 == 0 else [b"" if number % 3 == 1 else rng.randbytes(32)])]
        refusal = meta.store.check(ChangeCluster(0, rng.randbytes(16), "add node", pack(arguments)), meta.time)
        assert refusal is not None
        assert (refusal.code, "raftkv-admin node add" in refusal.detail) == (Code.CONDITION_FAILED, True)
    assert meta.state is state


# Joining


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv(VARIABLE, "known to all nodes")
    with world_of(nodes=3, groups=1) as made:
        yield made


def places() -> Places:
    return Places(*(f"127.0.0.1:{port}" for port in free_ports(2)))


def test_a_second_folder_and_one_without_a_token_are_refused_and_leave_nothing(world: World, tmp_path: Path) -> None:
    token = join_token(world.endpoints, 30.0)
    assert join(world.endpoints, tmp_path / "a", places(), token=token).node.id == 4
    for wrong, told in ((token, "was used already"), ("", "is missing"), ("guess", "does not know this join token")):
        with pytest.raises(JoinError, match=f"the cluster refuses this node: .*join token {told}|{told}"):
            join(world.endpoints, tmp_path / "b", places(), token=wrong)
        assert not (tmp_path / "b" / "join.json").exists()
    assert [node.id for node in world.map.nodes] == [1, 2, 3, 4]
    assert join(world.endpoints, tmp_path / "b", places(), token=join_token(world.endpoints, 30.0)).node.id == 5


def test_a_folder_that_joins_a_cluster_with_users_knows_of_them_before_its_node_starts(
    world: World, tmp_path: Path
) -> None:
    """Until it has heard who they are it serves nobody."""
    join(world.endpoints, tmp_path / "a", places(), token=join_token(world.endpoints, 30.0))
    world.meta.change_users(Bootstrap(META_GROUP, b"b" * 16, "admin", digest("rkv-first")))
    join(world.endpoints, tmp_path / "b", places(), token=join_token(world.endpoints, 30.0))
    assert [(tmp_path / name / "users").exists() for name in ("a", "b")] == [False, True]


def test_the_command_takes_a_token_or_a_file_with_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("raftkv.node.main.serve", lambda *_: 0)
    at = places()
    words = ["serve", "--join", world.endpoints, "--data-dir", str(tmp_path / "n"), "--address", str(at.address)]
    words += ["--peer-address", str(at.peer_address)]
    file = tmp_path / "token"
    assert run([*words, "--token-file", str(file)]) == 1
    assert f"--token-file {file}: cannot read it: No such file" in capsys.readouterr().err
    file.write_text(join_token(world.endpoints, 30.0) + "\n")
    assert run([*words, "--token", "t", "--token-file", str(file)]) == 2
    assert run(["serve", "--config", "f", "--token", "t"]) == 2
    assert run(words) == 1
    assert "a join token is missing" in capsys.readouterr().err
    assert run([*words, "--token-file", str(file)]) == 0
    assert len(world.map.nodes) == 4
    file.unlink()
    assert run([*words, "--token-file", str(file)]) == 0, "the same command starts it again"
