"""Whatever strangers and peers send, in whatever pieces: it is read, refused rightly, or costs its connection.

The bytes of links, their handshake, and the calls of clients and operators. What messages hold is in
``test_decoders.py``.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import msgpack
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given, settings
from hypothesis import strategies as st

from raftkv.commands.base import Command, GroupCommand, Read
from raftkv.commands.group import Genesis
from raftkv.commands.meta import ChangeCluster, ReadCluster
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.peer.frames import CHECKSUM, Decoder, Encoder, ProtocolViolation, Tag, framed
from raftkv.peer.handshake import Accepting, Dialling, Secret
from raftkv.peer.hello import HelloRefused, Identity, Reason, check_answer, check_challenge, check_hello, check_proof
from raftkv.peer.hello import hello_frame as hello_of
from raftkv.store.codec import pack
from raftkv.store.meta import MetaStore
from raftkv.store.records import Store
from raftkv.v1 import admin_pb2, kv_pb2
from tests.peer_world import ENCODER, World, rest, run
from tests.property.test_decoders import EVERYTHING, changed
from tests.rpc_fakes import SLOTS, FakeCluster
from tests.waiting import PATIENCE

ONE, TWO = Identity("c", 1, "inc-1", "boot-1"), Identity("c", 2, "inc-2", "boot-2")
KEY = b"k" * 32
MESSAGES = st.lists(st.one_of(EVERYTHING, st.binary(min_size=100, max_size=300)), max_size=4)

# -- frames


@given(st.lists(MESSAGES, max_size=3), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=50)
def test_frames_arrive_whole_however_the_stream_is_cut(frames: list[list[Any]], tagged: bool, seed: int) -> None:
    rng = random.Random(seed)
    encoder, out, into = Encoder(), Tag(KEY) if tagged else CHECKSUM, Tag(KEY) if tagged else CHECKSUM
    sent = [frame for frame in frames if _sendable(frame)]
    stream = b"".join(bytes(encoder.frame_of(frame, out)) for frame in sent)
    decoder, got = Decoder(seal=into), []
    while stream:
        size = rng.randint(1, 1 + len(stream))
        got += decoder.feed(stream[:size])
        stream = stream[size:]
    assert msgpack.packb(got) == msgpack.packb(sent), "floats that are no numbers are equal this way"


def _sendable(frame: list[Any]) -> bool:
    """Of a form that this node reads too: the numbers and depths of messages have bounds."""
    try:
        Decoder().feed(framed(msgpack.packb(frame)))
    except (ProtocolViolation, OverflowError, ValueError):
        return False
    return True


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 200), st.booleans())
def test_any_bytes_are_frames_or_a_violation_and_no_more_is_kept_than_allowed(
    chunks: list[bytes], limit: int, tagged: bool
) -> None:
    decoder = Decoder(limit, Tag(KEY) if tagged else CHECKSUM)
    for chunk in chunks:
        try:
            assert all(type(frame) is list for frame in decoder.feed(chunk))
        except ProtocolViolation:
            return
        assert len(decoder._kept) < limit + decoder.seal.header_bytes + 4


@given(MESSAGES, st.integers(0, 500), st.integers(1, 255))
@settings(max_examples=50)
def test_a_frame_that_was_changed_on_its_way_is_not_taken(frame: list[Any], at: int, flip: int) -> None:
    encoder = Encoder()
    if not _sendable(frame):
        return
    for seal, other in ((CHECKSUM, CHECKSUM), (Tag(KEY), Tag(KEY))):
        data = encoder.frame_of(frame, seal)
        data[at % len(data)] ^= flip
        try:
            assert Decoder(1000, other).feed(data) == []
        except ProtocolViolation:
            pass


# -- the handshake

HELLO = hello_of(ONE, 2, b"n" * 16)
FRAMES: list[Any] = [
    HELLO,
    ["challenge", b"n" * 16],
    ["proof", b"p" * 32],
    ["welcome", "boot", b"p" * 32],
    ["refuse", int(Reason.REMOVED), "you are removed", b"p" * 32],
]


def _frame(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@given(changed(FRAMES))
def test_frames_of_the_handshake_are_read_or_refused(value: Any) -> None:
    frame = _frame(value)
    reasons = [_refused(partial(check_hello, frame, TWO)), _refused(partial(check_proof, frame))]
    assert set(reasons) <= {*Reason, None}
    for read in (check_challenge, check_answer):
        try:
            read(frame)
        except ProtocolViolation:
            pass


def _refused(call: Callable[[], object]) -> int | None:
    try:
        call()
    except HelloRefused as refusal:
        return refusal.reason
    return None


@given(st.lists(st.one_of(st.sampled_from(FRAMES), changed(FRAMES)), max_size=4), st.integers(0, 2**32))
@settings(max_examples=60)
def test_an_acceptor_is_convinced_by_nobody_without_the_secret(values: list[Any], seed: int) -> None:
    accepting = Accepting(TWO, Secret(KEY, random.Random(seed)))
    for value in values:
        try:
            reply = accepting.take(_frame(value))
        except HelloRefused:
            return
        assert reply is not None, "None means that all is proven"
        assert reply[0] == "challenge"


@given(st.lists(st.one_of(st.sampled_from(FRAMES), changed(FRAMES)), max_size=4), st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_dialler_is_convinced_and_ended_by_nobody_without_the_secret(values: list[Any], seed: int) -> None:
    dialling, reason = Dialling(ONE, 2, Secret(KEY, random.Random(seed))), None
    for frame in map(_frame, values):
        try:
            reason = _refused(partial(dialling.answer, frame))
        except ProtocolViolation:
            break
        if reason is not None:
            break
    assert reason not in (Reason.REMOVED, Reason.REPLACED_FOLDER), "it would end the node"
    assert not dialling.welcomed


def _packed(value: Any) -> bytes:
    return bytes(ENCODER.frame_of(_frame(value)))


SAYINGS = st.one_of(
    st.binary(max_size=60),
    changed(FRAMES).map(_packed),
    st.just(_packed(HELLO)),
    MESSAGES.map(lambda frame: framed(msgpack.packb(frame))),
)


@given(st.lists(SAYINGS, min_size=1, max_size=5))
@settings(max_examples=40)
def test_a_stranger_reaches_nothing_of_a_node_and_disturbs_no_link(said: list[bytes]) -> None:
    async def scenario(world: World) -> None:
        world.secret = Secret(KEY, random.Random(1))
        two, one = await world.node(2, []), await world.node(1, [2])
        before = len(two.hellos)
        stranger = await world.stranger()
        for data in said:
            if not stranger.closed:
                await stranger.write(data)
        await world.clock.advance(3.0)
        assert stranger.closed, "it has not proven anything in time"
        assert (len(two.hellos), two.crashes) == (before, [])
        one.links.send(2, ["still here"])
        await rest()
        assert two.got == [(1, ["still here"])]

    run(scenario)


# -- calls of clients and operators


def _fields(kind: type[Message], depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of a kind, with any of its fields and anything that fits into them."""
    found: dict[str, st.SearchStrategy[Any]] = {}
    for field in kind.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            inner: Any = field.message_type
            if depth > 2 or inner.GetOptions().map_entry:
                continue
            one = _fields(GetMessageClass(inner), depth + 1)
        elif field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING):
            texts = st.binary(max_size=20) if field.type == FieldDescriptor.TYPE_BYTES else st.text(max_size=20)
            one = st.one_of(texts, st.just("h:1" if field.type == FieldDescriptor.TYPE_STRING else b"t" * 16))
        elif field.type == FieldDescriptor.TYPE_BOOL:
            one = st.booleans()
        elif field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
            one = st.floats(width=32)
        elif field.type == FieldDescriptor.TYPE_ENUM:
            one = st.integers(-1, 9)
        else:
            bits = 64 if "64" in _TYPES[field.type] else 32
            low, high = (0, 2**bits - 1) if "UINT" in _TYPES[field.type] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            one = st.one_of(st.integers(0, 3), st.sampled_from([low, high, 255, 65535]))
        found[field.name] = st.lists(one, max_size=3) if field.is_repeated else one
    return st.fixed_dictionaries({}, optional=found).map(lambda values: kind(**values))


_TYPES = {number: name for name, number in vars(FieldDescriptor).items() if name.startswith("TYPE_")}
METHODS: list[MethodDescriptor] = [
    method
    for module, service in ((kv_pb2, "KV"), (admin_pb2, "Admin"))
    for method in module.DESCRIPTOR.services_by_name[service].methods
]
CALLS = st.one_of(
    *(
        st.tuples(
            st.just(method),
            st.one_of(
                _fields(GetMessageClass(method.input_type)).map(lambda one: one.SerializeToString()),
                st.binary(max_size=30),
            ),
        )
        for method in METHODS
    )
)
SURPRISES = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}


@contextmanager
def _running() -> Iterator[tuple[asyncio.Runner, FakeCluster, grpc.aio.Channel]]:
    with asyncio.Runner() as runner:
        cluster = FakeCluster()
        runner.run(cluster.__aenter__())
        frontend = cluster.frontends[0]
        meta = MetaStore()
        assert frontend.map is not None
        meta.form(pack(frontend.map.to_wire()))
        store = Store()
        store.apply(1, [Genesis(tuple(range(SLOTS)))])
        frontend.script = partial(_executed, store, meta)

        async def dial() -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(cluster.addresses[0])

        channel = runner.run(dial())
        try:
            yield runner, cluster, channel
        finally:
            runner.run(channel.close(None))
            runner.run(cluster.__aexit__())


def _executed(store: Store, meta: MetaStore, op: Command) -> Result | None:
    """By the real state machines; of other groups as a whole nothing is known here."""
    if isinstance(op, ReadCluster):
        return meta.describe()
    if isinstance(op, ChangeCluster):
        return meta.check(op, meta.time) or meta.apply(meta.time + 1, [op])[0]
    if isinstance(op, GroupCommand):
        return Result(Code.UNAVAILABLE, detail="the group has no leader")
    return op.read(store) if isinstance(op, Read) else store.apply(store.time + 1, [op])[0]


async def _outcome(channel: Any, method: MethodDescriptor, request: bytes) -> grpc.StatusCode:
    path = f"/{method.containing_service.full_name}/{method.name}"
    same: Any = lambda data: data  # noqa: E731
    try:
        if method.client_streaming:
            stream = channel.stream_stream(path, same, same)(timeout=PATIENCE)
            await stream.write(request)
            await stream.done_writing()
            async for _ in stream:
                pass
        elif method.server_streaming:
            async for _ in channel.unary_stream(path, same, same)(request, timeout=PATIENCE):
                pass
        else:
            await channel.unary_unary(path, same, same)(request, timeout=PATIENCE)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_call_gets_an_answer_or_a_code_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    """Any bytes and any message: an exception that nobody expected would be UNKNOWN or INTERNAL, and a traceback."""
    seen: dict[grpc.StatusCode, int] = {}
    with _running() as (runner, _, channel), caplog.at_level(logging.WARNING):

        @given(st.lists(CALLS, min_size=1, max_size=6))
        @settings(max_examples=60)
        def ask(calls: list[tuple[MethodDescriptor, bytes]]) -> None:
            async def all_of_them() -> list[grpc.StatusCode]:
                return await asyncio.gather(*(_outcome(channel, method, request) for method, request in calls))

            for (method, request), code in zip(calls, runner.run(all_of_them()), strict=True):
                assert code not in SURPRISES, f"{method.name} of {request!r}: {code}\n{caplog.text}"
                seen[code] = seen.get(code, 0) + 1

        ask()
    assert len(METHODS) > 10
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= seen.keys()
    assert [record for record in caplog.records if record.exc_info] == []
