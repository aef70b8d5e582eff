"""Whatever bytes a decoder meets, with however right a checksum around them, it gives a value or its own error."""

from __future__ import annotations

import random
from typing import Any, get_args

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.sim.disk import SimDisk
from raftkv.api.pipeline import answers_of, read_request
from raftkv.commands.base import Write
from raftkv.commands.group import Genesis
from raftkv.commands.members import Members
from raftkv.commands.moving import ImportBegin, Track
from raftkv.commands.records import Cas, Get, Put
from raftkv.commands.registry import Piped, encode
from raftkv.commands.results import Result
from raftkv.commands.transactions import Check, GetStep, PutStep, Transact
from raftkv.commands.updates import Increment
from raftkv.errors import CorruptData, InvalidArgument, StorageError
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.peer.frames import Decoder, ProtocolViolation, framed
from raftkv.peer.handshake import Accepting, Dialling, Secret
from raftkv.peer.hello import HelloRefused, Identity, Reason, hello_frame
from raftkv.raft.messages import Type, check
from raftkv.storage import wal_format
from raftkv.storage.wal_recovery import recover
from raftkv.store.codec import unpack, unpack_all
from raftkv.store.copying import Summary, load
from raftkv.store.meta import MetaStore
from raftkv.store.meta_state import MetaState
from raftkv.store.records import Store
from raftkv.v1 import kv_pb2
from shards.map import Group, MapError, Node, ShardMap
from tests.store_helpers import again

NUMBERS = st.one_of(st.integers(0, 3), st.sampled_from([-1, 127, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, -(2**63)]))
SCALARS = st.one_of(NUMBERS, st.none(), st.booleans(), st.floats(), st.binary(max_size=20), st.text(max_size=8))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=9), max_leaves=20)
EVERYTHING = st.one_of(VALUES, st.dictionaries(st.text(max_size=3), VALUES, max_size=3))


@st.composite
def changed(draw: st.DrawFn, rows: list[Any]) -> Any:
    """One of ``rows`` with something in it replaced, however deep."""
    row = draw(st.sampled_from(rows))

    def alter(value: Any) -> Any:
        if isinstance(value, list | tuple) and value and draw(st.integers(0, 5)):
            at = draw(st.integers(0, len(value) - 1))
            return [alter(part) if place == at else part for place, part in enumerate(value)]
        return draw(EVERYTHING)

    return alter(row)


OPS = unpack(encode([Put(3, b"k", b"v", client=b"c" * 16, seq=1, first=1), Cas(3, b"k", b"v", b"x"), Members(1)]))
RESULTS = unpack(encode([[1, 0, Result(0, 5, b"v")], [1, 1, Result(2, detail="no")]]))
MESSAGES: list[Any] = [
    ["op", 1, 1000, 1, 0, "user", OPS],
    ["re", RESULTS],
    ["epoch", 3],
    ["leads", [1, 2]],
    ["room", False, True],
    ["address", "h:1", "h:2"],
    ["map", b"map"],
    [1, int(Type.APPEND), 1, 1, 1, 1, 1, 1, [[1, b"x"]]],
    [1, int(Type.ACK), 1, 1, 1, True, 1, 1, [1, 1]],
]
READERS = {
    "op": messages.operations,
    "re": messages.answers,
    "epoch": messages.epoch,
    "leads": messages.groups,
    "room": messages.room,
    "address": messages.addresses,
    "map": messages.encoded_map,
}


@given(changed(MESSAGES))
def test_messages_of_peers_are_read_or_refused(message: Any) -> None:
    if not isinstance(message, list) or not message:
        return
    if isinstance(message[0], str) and message[0] in READERS:
        try:
            if message[0] in ("op", "re"):
                # What they bring is encoded by itself.
                message = [*message[:-1], msgpack.packb(message[-1])]
            READERS[message[0]](message)
        except messages.Malformed:
            return
    elif type(message[0]) is int:
        assert check(message) in (True, False)


ONE, TWO = Identity("c", 1, "i", "b"), Identity("c", 2, "i", "b")
SHAKING = [
    hello_frame(ONE, 2, b"n" * 16),
    hello_frame(ONE, 2),
    ["challenge", b"n" * 16],
    ["proof", b"p" * 32],
    ["welcome", "b", b"p" * 32],
    ["refuse", 4, "removed", b"p" * 32],
]


@given(st.lists(st.one_of(changed(SHAKING), st.sampled_from(SHAKING)), max_size=3), st.booleans())
@settings(max_examples=300)
def test_no_frames_but_the_right_ones_shake_hands(frames: list[Any], secret: bool) -> None:
    """Nobody has proven anything where there is a secret; and where there is none, the network has to tell."""
    known = Secret(b"0123456789abcdef", random.Random(0)) if secret else None
    accepting, dialling = Accepting(TWO, known), Dialling(ONE, 2, known)
    frames = [frame for frame in frames if isinstance(frame, list)]
    taken = []
    try:
        for frame in frames:
            taken.append(accepting.take(frame))
            if not secret:
                break
    except HelloRefused:
        pass
    assert None not in taken or not secret
    try:
        for frame in frames:
            dialling.answer(frame)
            if dialling.welcomed:
                break
    except (HelloRefused, ProtocolViolation) as refused:
        fatal = getattr(refused, "reason", 0) in (Reason.REMOVED, Reason.REPLACED_FOLDER)
        assert not (fatal and secret)
    assert not (dialling.welcomed and secret)


TRANSACT = Transact(3, (Check(b"k", 1),), (PutStep(b"k", b"v"),), (GetStep(b"k"),), client=b"c" * 16, seq=1, first=1)
ASKED = unpack(
    encode([[1, 2, 3], [Get(3, b"k"), Put(3, b"k", b"v", client=b"c" * 16, seq=1, first=1), Cas(3, b"k", b"v")]])
)
ASKED_MORE = unpack(encode([[1, 2], [Increment(3, b"k", -1), TRANSACT]]))
ANSWERED = unpack(encode([[1, 2], [Result(0, 5, b"v"), Result(2, detail="no")]]))


@given(changed([ASKED, ASKED_MORE, ANSWERED]), st.binary(max_size=6), st.integers(0, 200))
@settings(max_examples=300)
def test_packed_messages_of_pipelines_are_read_or_refused(message: Any, junk: bytes, at: int) -> None:
    packed = msgpack.packb(message)
    for data in (packed, packed[:at] + junk + packed[at:], packed[:at], junk):
        try:
            _, ids, commands = read_request(kv_pb2.PipelineRequest(packed=data).SerializeToString())
        except InvalidArgument:
            pass
        else:
            assert len(ids) == len(commands)
            for op in commands:
                assert isinstance(op, get_args(Piped))
                assert op.placed(1024) in (True, False)
                if op.refusal() is None:
                    assert messages.operations(messages.ask(1, 1, Origin(1), [op])) == (1, 1, Origin(1), [op])
                    assert not isinstance(op, Write) or again([op]) == [op]
        try:
            answers = answers_of(kv_pb2.PipelineResponse(packed=data))
        except ValueError:
            continue
        assert len(answers.ids) == len(answers.results)


@given(changed(MESSAGES), st.binary(max_size=6), st.integers(0, 200))
def test_frames_are_read_or_refused(message: Any, junk: bytes, at: int) -> None:
    body = msgpack.packb([message])
    body = body[:at] + junk + body[at:]
    try:
        Decoder().feed(framed(body))
    except ProtocolViolation:
        pass


RECORDS: list[Any] = [
    [wal_format.GROUP, 1, [1, 2]],
    [wal_format.HARD_STATE, 1, 1, 1],
    [wal_format.ENTRY, 1, 1, 1, b"x"],
    [wal_format.TRUNCATE, 1, 1],
    [wal_format.SNAPSHOT, 1, 1, 0],
    [wal_format.DROP, 1, 1, 1],
    [wal_format.OPENING, [[1, [1, 2], 1, 1, 0, 0, 0], [2, [], 1, 1, 0, 0, 0, 1, 1]]],
]
OPENING = [wal_format.OPENING, []]


@given(st.lists(st.one_of(st.sampled_from(RECORDS), changed(RECORDS)), max_size=4), st.booleans(), st.integers(0, 4))
@settings(max_examples=200)
def test_records_of_the_log_are_read_or_damage(records: list[Any], opened: bool, count: int) -> None:
    salt = wal_format.segment_salt(b"me", 1)
    packed = [msgpack.packb(record) for record in ([*records, OPENING] if opened else records)]
    head = wal_format.pack_segment_header(1, salt, 4096)
    data = head + wal_format.pack_batch(salt, 1, count, 0, packed)
    disk = SimDisk()
    fs = disk.mount()
    fs.makedirs("wal")
    file = fs.create(f"wal/{wal_format.segment_name(1)}", 4096)
    file.write_at(0, data)
    file.sync()
    try:
        found = recover(fs, "wal", b"me")
    except CorruptData:
        return
    assert found is not None
    for group, state in found.groups.items():
        assert all(type(value) is int for value in (group, state.term, state.vote, *state.founders, *state.floor))
        assert all(
            (type(command), type(index), type(term)) == (bytes, int, int) for command, index, term in state.entries
        )


def _items() -> list[Any]:
    store = Store()
    store.apply(5, [Genesis((0, 1))])
    store.apply(6, [Put(0, b"k", b"v", client=b"c" * 16, seq=1, first=1), Put(1, b"l", b"w", ttl=500)])
    store.apply(7, [Track(1, 4, (1,)), Put(1, b"m", b"x"), ImportBegin(1, 5, (7,))])
    return list(unpack_all(b"".join(store.snapshot().chunks())))


ITEMS = _items()


@given(changed([ITEMS]), st.integers(0, 2**32))
@settings(max_examples=300)
def test_snapshots_of_records_are_read_or_refused(items: Any, seed: int) -> None:
    store = Store()
    restore = store.begin_restore()
    chunk = b"".join(msgpack.packb(item) for item in (items if isinstance(items, list) else [items]))
    try:
        restore.feed(chunk)
        restore.finish()
    except StorageError:
        return
    # What was taken can be used.
    rng = random.Random(seed)
    for now in (10, 10_000):
        store.apply(
            store.time + now,
            [Put(slot, b"%d" % rng.randrange(9), b"v", ttl=rng.randrange(9)) for slot in range(2)],
        )
    store.digest()
    list(store.snapshot().chunks())


def _map() -> ShardMap:
    nodes = tuple(Node(node, "h:1", "h:2", "ab") for node in (1, 2))
    return ShardMap("c", 3, 256, nodes, (Group(0, (1,)), Group(1, (1, 2))), (1,) * 256, (9,))


MAP = _map().to_wire()
META = MetaState(map=None, wanted={1: (1, 2)}, draining=(1,), garbage=frozenset({(1, 2)}), noted={1: 5}).to_wire()


@given(st.sampled_from(sorted(MAP)), EVERYTHING, changed([list(MAP.values())]))
def test_maps_are_read_or_refused(key: str, value: Any, values: Any) -> None:
    altered: list[Any] = [{**MAP, key: value}]
    if isinstance(values, list) and len(values) == len(MAP):
        altered.append(dict(zip(MAP, values, strict=True)))
    for wire in altered:
        try:
            ShardMap.from_wire(wire)
        except MapError:
            pass


@given(changed([["raftkv meta", 5, META, [[b"t" * 16, 1, "no"]]]]))
def test_snapshots_of_the_meta_group_are_read_or_refused(value: Any) -> None:
    restore = MetaStore().begin_restore()
    restore.feed(msgpack.packb(value))
    try:
        restore.finish()
    except StorageError:
        pass


@given(changed([[5, [[1, 2, b""]], 3, b"d" * 16]]), changed([[b"", [[1, [b"k", b"v", 1, 0], [b"d"], []]]]]))
def test_what_moves_bring_is_read_or_refused(summary: Any, page: Any) -> None:
    for decode, value in ((Summary.decode, summary), (load, page)):
        try:
            decode(msgpack.packb(value))
        except ValueError:
            pass
