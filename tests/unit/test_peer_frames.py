"""Frames: any split of the stream gives the same messages, and no bytes of a stranger do more than raise."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv import limits
from raftkv.commands.records import Delete
from raftkv.commands.results import Result
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.peer.frames import LENGTH, Decoder, Encoder, MessageTooLong, ProtocolViolation, framed

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
_FRAMES = st.lists(st.lists(st.lists(_VALUES, max_size=4), max_size=4), min_size=1, max_size=5)


def pieces(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    start = 0
    for cut in [*sorted(min(c, len(stream)) for c in cuts), len(stream)]:
        yield stream[start:cut]
        start = cut


@given(_FRAMES, st.lists(st.integers(0, 2000), max_size=12))
def test_any_split_of_the_stream_gives_the_same_frames(frames: list[list[Any]], cuts: list[int]) -> None:
    encoder, decoder = Encoder(), Decoder()
    stream = b"".join(encoder.frame_of(frame) for frame in frames)
    got: list[list[Any]] = []
    for piece in pieces(stream, cuts):
        got += decoder.feed(piece)
    assert got == frames


def test_one_byte_at_a_time_gives_the_same_frames() -> None:
    encoder, decoder = Encoder(), Decoder()
    frames: list[list[Any]] = [[[1, b"x" * 300, "é"], [2]], [], [[{"a": [None, True, 1.5]}]]]
    stream = b"".join(encoder.frame_of(frame) for frame in frames)
    got: list[list[Any]] = []
    for byte in stream:
        got += decoder.feed(bytes([byte]))
    assert got == frames


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
def test_every_form_of_the_array_header_is_read_back(count: int) -> None:
    encoder = Encoder()
    frame = [[n] for n in range(count)]
    assert Decoder().feed(encoder.frame_of(frame)) == [frame]


def test_bytes_and_text_stay_what_they_were() -> None:
    (frame,) = Decoder().feed(Encoder().frame_of([[b"\xff\x00", "text"]]))
    assert frame == [[b"\xff\x00", "text"]]
    assert [type(item) for item in frame[0]] == [bytes, str]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_garbage_only_ever_raises_a_violation(garbage: bytes, cuts: list[int]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces(garbage, cuts):
            decoder.feed(piece)
    except ProtocolViolation:
        pass


@given(st.binary(max_size=100))
def test_a_well_framed_body_of_garbage_only_ever_raises_a_violation(body: bytes) -> None:
    try:
        frames = Decoder().feed(framed(body))
    except ProtocolViolation:
        return
    assert frames == [msgpack.unpackb(body)]


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_never_delivered(position: int, bit: int) -> None:
    frame = Encoder().frame_of([[1, 2, 3, b"payload"], ["second"]])
    frame[position % len(frame)] ^= 1 << bit
    try:
        assert Decoder().feed(frame) == []  # a longer length waits for more bytes
    except ProtocolViolation:
        pass


def test_an_over_long_announcement_is_refused_before_its_bytes_arrive() -> None:
    with pytest.raises(ProtocolViolation, match="limit"):
        Decoder().feed(LENGTH.pack(limits.MAX_FRAME_BYTES + 1))


def test_the_limit_can_be_raised_after_the_handshake() -> None:
    frame = Encoder().frame_of([[b"x" * 100]])
    with pytest.raises(ProtocolViolation):
        Decoder(limit=50).feed(frame)
    decoder = Decoder(limit=50)
    decoder.limit = 200
    assert decoder.feed(frame) == [[[b"x" * 100]]]


def test_a_wrong_checksum_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="checksum"):
        Decoder().feed(LENGTH.pack(1) + (zlib.crc32(b"\x90") ^ 1).to_bytes(4, "big") + b"\x90")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x01",  # not an array
        b"\x81\xa1a\x01",  # a map
        b"\x91",  # incomplete
        b"\x90\x90",  # something left over
        b"\xc1",  # no msgpack at all
        b"\x91\xa1\xff",  # text that is not UTF-8
        b"\x91\x81\x01\x02",  # a key that is not text
        b"\x91\x81\x90\x01",  # a key that cannot be hashed
        b"\x91\xd4\x01a",  # an extension
        b"\x91\xc7\x00\x05",  # an empty extension
        b"\x91\xc7\x00\xff",  # an empty timestamp
        b"\x91\xd6\xff\x00\x00\x00\x01",  # a timestamp
        b"\x91" * 5000,  # too deep
        b"\xdd\xff\xff\xff\xff",  # four milliards of items
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
    ],
)
def test_a_body_that_no_node_sends_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Decoder().feed(framed(body))


def test_arrays_that_announce_more_items_than_a_frame_may_hold_are_refused() -> None:
    body = b"\xdd\x00\x20\x00\x00" + b"\x01" * (2 * 1024 * 1024)
    with pytest.raises(ProtocolViolation, match="max_array_len"):
        Decoder().feed(framed(body))


_MANY = 400_000


@pytest.mark.parametrize(
    "item",
    [b"\x80", b"\x90", b"\x01", b"\xc4\x00", b"\xa2ab", b"\x91\x90", b"\x81\xa0\x01", b"\xcb" + bytes(8)],
    ids=["maps", "arrays", "numbers", "bytes", "texts", "nested", "pairs", "floats"],
)
def test_the_items_of_a_frame_are_bounded_in_all(item: bytes) -> None:
    """A frame of 15.7 MB of empty maps took 1 GB."""
    count = min(_MANY, (limits.MAX_FRAME_BYTES - 32) // len(item) // 3)
    body = b"\x93" + 3 * (b"\xdd" + count.to_bytes(4, "big") + item * count)
    with pytest.raises(ProtocolViolation, match="more than 1048576 items"):
        Decoder().feed(framed(body))


def test_maps_with_many_keys_are_refused() -> None:
    body = b"\x91\xde\x08\x00" + b"".join(b"\xa2%02x\x01" % (at % 256) for at in range(2048))
    with pytest.raises(ProtocolViolation, match="max_map_len"):
        Decoder().feed(framed(body))


def test_what_nodes_send_has_fewer_items() -> None:
    """Full frames of the smallest entries, and of the smallest operations that are forwarded together, pass."""
    entries = [[1, 8, 1, 1, 1, 1, 1, 1, [(1, b"x" * 24)] * (limits.MAX_ENTRY_BYTES // 24)]]
    ops = [messages.ask(1, 1, Origin(1), [Delete(0, b"k")] * (limits.MAX_BATCH_BYTES // 65))]
    for frame in (entries, ops):
        ((message,),) = Decoder().feed(Encoder().frame_of(frame))
    assert len(messages.operations(message)[3]) == limits.MAX_BATCH_BYTES // 65


def test_messages_of_very_many_operations_are_refused() -> None:
    many = [Delete(0, b"k")] * (limits.MAX_BATCH_BYTES // 32)
    with pytest.raises(messages.Malformed):
        messages.operations(messages.ask(1, 1, Origin(1), many))
    with pytest.raises(messages.Malformed):
        messages.answers(messages.answer([(1, 0, Result(0))] * len(many)))


def test_frames_up_to_the_limit_pass_and_longer_messages_are_the_senders_error() -> None:
    encoder = Encoder()
    longest = b"x" * (limits.MAX_FRAME_BYTES - 16)
    assert Decoder().feed(encoder.frame_of([[longest]])) == [[[longest]]]
    with pytest.raises(MessageTooLong):
        encoder.pack([longest + b"x" * 16])
    half = encoder.pack([b"x" * (limits.MAX_FRAME_BYTES // 2)])
    with pytest.raises(MessageTooLong):
        encoder.frame([half, half])


def test_what_msgpack_cannot_hold_raises_and_leaves_the_encoder_usable() -> None:
    encoder = Encoder()
    with pytest.raises(TypeError):
        encoder.pack([1, object()])
    with pytest.raises(OverflowError):
        encoder.pack([2**64])
    assert Decoder().feed(encoder.frame_of([[1]])) == [[[1]]]
