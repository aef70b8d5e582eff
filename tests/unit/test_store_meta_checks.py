"""What must not get into the meta group's log; a log that holds it all the same leads every replica to one state."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from raftkv.commands.meta import ChangeCluster, FormCluster
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.store.codec import pack
from raftkv.store.meta import MetaStore
from shards.map import Group, Node, ShardMap

LIFE = "cd" * 16


def made() -> MetaStore:
    nodes = tuple(Node(i, f"h{i}:1", f"h{i}:2", f"{i:032x}") for i in (1, 2, 3))
    groups = (Group(0, (1, 2, 3)), Group(1, (1, 2, 3)))
    store = MetaStore()
    first = ShardMap("c", 1, 256, nodes, groups, (1,) * 256)
    store.apply(1, [FormCluster(pack(first.to_wire()))])
    return store


def change(verb: str, *arguments: Any, token: bytes = b"t" * 16) -> ChangeCluster:
    return ChangeCluster(0, token, verb, pack(list(arguments)))


def apply(store: MetaStore, verb: str, *arguments: Any, token: bytes = b"t" * 16) -> Result:
    (result,) = store.apply(2, [change(verb, *arguments, token=token)])
    return result


BAD = [
    ("kv-4..prod:7449", "h:2"),
    ("h:1", "kv-4..prod:7449"),
    ("x", "h:2"),
    ("127.0.0.1:99999", "h:2"),
    ("a b:1", "h:2"),
    ("http://h:1", "h:2"),
    ("a\0:1", "h:2"),
    ("0.0.0.0:1", "h:2"),
    ("h:1", "[::]:2"),
    ("", "h:2"),
]


@pytest.mark.parametrize(("address", "peer_address"), BAD)
def test_no_node_joins_at_what_is_no_address(address: str, peer_address: str) -> None:
    # The second one is a leader's that has not applied its log yet.
    for store in (made(), MetaStore()):
        refusal = store.check(change("add node", address, peer_address, LIFE), 1)
        assert refusal is not None
        assert refusal.code == Code.INVALID_ARGUMENT
        assert refusal.detail.startswith("address ")


@pytest.mark.parametrize(
    ("address", "peer_address", "told"),
    [
        ("h:1", "h:1", "for clients and for nodes"),
        ("[::1]:1", "[0::1]:1", "for clients and for nodes"),
        ("h1:1", "h:2", "node 1 has the address h1:1 already"),
        ("h:1", "h2:1", "node 2 has the address h2:1 already"),
        ("h3:2", "h:2", "node 3 has the address h3:2 already"),
        ("h:1", "H3:2", "node 3 has the address H3:2 already"),
    ],
)
def test_nodes_have_an_address_each_for_clients_and_for_nodes(address: str, peer_address: str, told: str) -> None:
    refusal = made().check(change("add node", address, peer_address, LIFE), 1)
    assert refusal is not None
    assert (refusal.code, told in refusal.detail) == (Code.CONDITION_FAILED, True)


def test_what_is_right_is_left_to_the_state_machine() -> None:
    store = made()
    assert store.check(change("remove node", 9), 1) is None
    joining = change("add node", "h:1", "h:2", LIFE, b"d" * 32)
    assert store.check(joining, None) is None, "the leader may not know the token yet: apply decides"
    assert MetaStore().check(joining, None) is None, "there is no map yet: apply decides"
    bare = [ChangeCluster(0, b"t" * 16, "add node", arguments) for arguments in (b"", b"\xc1", pack(7), pack([]))]
    for malformed in (*bare, change("add node", 1, 2, 3)):
        refusal = store.check(malformed, 1)
        assert refusal is not None
        assert refusal.code == Code.INVALID_ARGUMENT


def test_a_log_that_holds_what_is_no_address_leads_to_one_state() -> None:
    """Else a replica that replays it and one that starts from a snapshot would differ."""
    store = made()

    def joined(address: str, peer_address: str, life: str, number: int) -> Result:
        digest = sha256(life.encode()).digest()
        assert apply(store, "add join token", digest, token=b"j%015d" % number).code == Code.OK
        return apply(store, "add node", address, peer_address, life, digest, token=number.to_bytes(16))

    for number, addresses in enumerate(BAD[:-1], start=4):
        life = f"{number:032x}"
        # The same address may be in many of these: take each once, as apply always wanted.
        texts = [f"{text}{number}" if text.startswith("h:") else text for text in addresses]
        if store.map is not None and any({*texts} & {one.address, one.peer_address} for one in store.map.nodes):
            continue
        assert joined(texts[0], texts[1], life, number).code == Code.OK
    assert joined("same:1", "same:1", LIFE, 99).number == store.state.last_node
    restored = MetaStore()
    restoring = restored.begin_restore()
    for chunk in store.snapshot().chunks():
        restoring.feed(chunk)
    restoring.finish()
    assert restored.digest() == store.digest()
    # It is in the map under its incarnation: asked again, it has the same outcome.
    assert store.check(change("add node", "same:1", "same:1", LIFE), 1) is None
    # And it can be removed.
    assert apply(store, "remove node", store.state.last_node, token=b"r" * 16).code == Code.OK


@pytest.mark.parametrize(("address", "peer_address"), BAD)
def test_no_node_moves_to_what_is_no_address(address: str, peer_address: str) -> None:
    refusal = made().check(change("readdress node", 2, f"{2:032x}", address, peer_address), 1)
    assert refusal is not None
    assert refusal.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (("h:1", "h:1"), "for clients and for nodes"),
        (("h1:1", "h:2"), "node 1 has the address h1:1 already"),
        (("h:1", "H3:2"), "node 3 has the address H3:2 already"),
    ],
)
def test_no_node_moves_to_anothers_address(places: tuple[str, str], told: str) -> None:
    refusal = made().check(change("readdress node", 2, f"{2:032x}", *places), 1)
    assert refusal is not None
    assert refusal.code == Code.CONDITION_FAILED
    assert told in refusal.detail


def test_a_member_that_has_moved_stays_what_it_is() -> None:
    store = made()
    before = store.map
    assert before is not None
    life = f"{2:032x}"
    # To what was one of its own, too.
    assert store.check(change("readdress node", 2, life, "g2:1", "h2:1"), 1) is None
    assert apply(store, "readdress node", 2, life, "g2:1", "h2:1").code == Code.OK
    after = store.map
    assert after is not None
    assert after.node(2) == Node(2, "g2:1", "h2:1", life)
    assert (after.epoch, after.groups, after.node(1), after.node(3)) == (
        before.epoch + 1,
        before.groups,
        before.node(1),
        before.node(3),
    )
    assert apply(store, "readdress node", 2, life, "g2:1", "h2:1", token=b"u" * 16).code == Code.OK
    assert store.map is after, "said twice, it is done once"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((9, f"{9:032x}", "g:1", "g:2"), Code.CONDITION_FAILED, "there is no node 9"),
        ((2, f"{3:032x}", "g:1", "g:2"), Code.CONDITION_FAILED, "node 2 has another data folder"),
        ((2, f"{2:032x}", "h3:1", "g:2"), Code.CONDITION_FAILED, "node 3 has the address"),
        ((2, f"{2:032x}", "g:1", 7), Code.INVALID_ARGUMENT, "peer address must be text"),
        ((2, f"{2:032x}", "g:1"), Code.INVALID_ARGUMENT, "readdress node"),
    ],
)
def test_what_is_not_that_member_moves_nothing(arguments: tuple[Any, ...], code: Code, told: str) -> None:
    store = made()
    before = store.map
    result = apply(store, "readdress node", *arguments)
    assert result.code == code
    assert told in result.detail
    assert store.map is before
