"""Guarantee: who does not know the cluster's secret is no peer, whatever it has seen or heard of handshakes."""

from __future__ import annotations

import hmac
import random
from functools import partial
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from raftkv.peer.frames import CHECKSUM, Decoder, Encoder, ProtocolViolation, Tag, framed
from raftkv.peer.handshake import Accepting, Dialling, Secret
from raftkv.peer.hello import HelloRefused, Identity, Reason, hello_frame
from tests.log_lines import written
from tests.peer_world import ENCODER, Node, Stranger, World, rest, run

ONE = Identity("c", 1, "inc-1", "boot-1")
TWO = Identity("c", 2, "inc-2", "boot-2")
KEY = b"0123456789abcdef"


def secret(seed: int = 0, key: bytes = KEY) -> Secret:
    return Secret(key, random.Random(seed))


def challenged(dialler: Dialling, acceptor: Accepting) -> list[Any]:
    """The dialler's proof."""
    challenge = acceptor.take(dialler.hello)
    assert challenge is not None
    assert challenge[0] == "challenge"
    proof = dialler.answer(challenge)
    assert proof is not None
    return proof


def test_both_prove_the_secret_and_have_the_same_keys() -> None:
    dialler, acceptor = Dialling(ONE, 2, secret(1)), Accepting(TWO, secret(2))
    assert acceptor.take(challenged(dialler, acceptor)) is None
    assert dialler.answer(acceptor.welcome()) is None
    assert (dialler.welcomed, dialler.boot) == (True, "boot-2")
    body = memoryview(b"body")
    for sent, heard in zip(dialler.seals(), acceptor.seals(), strict=True):
        assert sent is not CHECKSUM
        assert heard.matches(body, memoryview(sent.of(body)))
    of_dialler, of_acceptor = dialler.seals()
    assert of_dialler.of(body) != of_acceptor.of(body)


def test_another_secret_is_refused_by_each_side() -> None:
    dialler, acceptor = Dialling(ONE, 2, secret(1, b"another" * 3)), Accepting(TWO, secret())
    with pytest.raises(HelloRefused, match="does not know the cluster's secret") as refused:
        acceptor.take(challenged(dialler, acceptor))
    assert refused.value.reason == Reason.NOT_PROVEN
    assert acceptor.refuse(refused.value)[-1] == b"", "nothing is signed for a stranger"
    dialler = Dialling(ONE, 2, secret())
    dialler.answer(["challenge", b"n" * 16])
    with pytest.raises(ProtocolViolation, match="does not know the cluster's secret"):
        dialler.answer(["welcome", "boot", b"p" * 32])


def test_a_replayed_proof_is_worth_nothing() -> None:
    dialler, acceptor = Dialling(ONE, 2, secret(1)), Accepting(TWO, secret(2))
    proof = challenged(dialler, acceptor)
    later = Accepting(TWO, secret(3))
    later.take(dialler.hello)
    with pytest.raises(HelloRefused, match="secret"):
        later.take(proof)


def test_a_proof_is_of_one_hello() -> None:
    """Somebody in the middle changes who the dialler is."""
    for field, value in ((4, 3), (6, "inc-9"), (7, "boot-9"), (8, b"n" * 16)):
        dialler, acceptor = Dialling(ONE, 2, secret(1)), Accepting(TWO, secret(2))
        changed = [value if at == field else item for at, item in enumerate(dialler.hello)]
        challenge = acceptor.take(changed)
        assert challenge is not None
        proof = dialler.answer(challenge)
        assert proof is not None
        with pytest.raises(HelloRefused, match="secret"):
            acceptor.take(proof)


def test_a_proof_cannot_be_reflected() -> None:
    """A stranger gives a node's own words back to it, or lets one node answer for another."""
    dialler, acceptor = Dialling(ONE, 2, secret(1)), Accepting(TWO, secret(2))
    proof = challenged(dialler, acceptor)
    with pytest.raises(ProtocolViolation):
        dialler.answer(["welcome", "boot", proof[1]])
    itself = Accepting(ONE, secret(3))
    with pytest.raises(HelloRefused):
        itself.take(dialler.hello)


@pytest.mark.parametrize("reason", [Reason.REMOVED, Reason.REPLACED_FOLDER, Reason.NOT_A_MEMBER, 77])
def test_what_ends_a_node_needs_a_proof(reason: int) -> None:
    forged = ["refuse", int(reason), "you are removed", b""]
    dialler = Dialling(ONE, 2, secret())
    with pytest.raises(ProtocolViolation, match="without a proof"):
        dialler.answer(forged)
    dialler = Dialling(ONE, 2, secret())
    dialler.answer(["challenge", b"n" * 16])
    with pytest.raises(ProtocolViolation, match="without a proof"):
        dialler.answer(forged)
    acceptor = Accepting(TWO, secret(2))
    dialler = Dialling(ONE, 2, secret())
    acceptor.take(challenged(dialler, acceptor))
    with pytest.raises(HelloRefused, match="gone") as refused:
        dialler.answer(acceptor.refuse(HelloRefused(reason, "gone")))
    assert refused.value.reason == reason


def test_a_signed_refusal_holds_for_its_own_words_only() -> None:
    dialler, acceptor = Dialling(ONE, 2, secret(1)), Accepting(TWO, secret(2))
    acceptor.take(challenged(dialler, acceptor))
    signed = acceptor.refuse(HelloRefused(Reason.NOT_A_MEMBER, "not yet"))
    with pytest.raises(ProtocolViolation):
        dialler.answer(["refuse", int(Reason.REMOVED), *signed[2:]])


def test_one_with_a_secret_and_one_without_do_not_meet() -> None:
    for one, two in ((None, secret()), (secret(), None)):
        with pytest.raises(HelloRefused) as refused:
            Accepting(TWO, two).take(Dialling(ONE, 2, one).hello)
        assert refused.value.reason == Reason.NOT_PROVEN


@pytest.mark.parametrize("frame", [["proof"], ["proof", "text"], ["welcome", "b", b""], [], [1]])
def test_malformed_proofs_are_refused(frame: list[Any]) -> None:
    acceptor = Accepting(TWO, secret())
    acceptor.take(Dialling(ONE, 2, secret()).hello)
    with pytest.raises(HelloRefused) as refused:
        acceptor.take(frame)
    assert refused.value.reason == Reason.MALFORMED


@pytest.mark.parametrize("frame", [["challenge"], ["challenge", "text"], ["challenge", b"short"]])
def test_malformed_challenges_are_violations(frame: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        Dialling(ONE, 2, secret()).answer(frame)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        secret(key=b"short")


# Frames


def test_a_tagged_frame_is_taken_once_in_order_and_whole() -> None:
    encoder, seal = Encoder(), Tag(KEY)
    first, second = bytes(encoder.frame_of([[1]], seal)), bytes(encoder.frame_of([[2]], seal))
    assert Decoder(seal=Tag(KEY)).feed(first + second) == [[[1]], [[2]]]
    for stream in (second, first + first, framed(b"\x91\x01"), bytes(encoder.frame_of([[1]], Tag(b"k" * 32)))):
        with pytest.raises(ProtocolViolation, match="wrong tag|not msgpack|is not an array|was announced"):
            Decoder(seal=Tag(KEY)).feed(stream + bytes(64))
    for at in range(len(first)):
        flipped = bytearray(first)
        flipped[at] ^= 1
        try:
            assert Decoder(seal=Tag(KEY)).feed(flipped) == []  # a longer length waits for more bytes
        except ProtocolViolation:
            pass


def test_proofs_and_tags_are_those_of_the_protocol() -> None:
    """As docs/protocol.md has them: another version must come to the same."""
    dialler, acceptor = Dialling(ONE, 2, secret(1)), Accepting(TWO, secret(2))
    challenge = acceptor.take(dialler.hello)
    assert challenge is not None
    said = msgpack.packb([dialler.hello, challenge[1]])
    assert dialler.answer(challenge) == ["proof", hmac.digest(KEY, b"dialler" + said, "sha256")]
    answered = msgpack.packb([dialler.hello, challenge[1], ["welcome", "boot-2"]])
    acceptor.take(["proof", hmac.digest(KEY, b"dialler" + said, "sha256")])
    assert acceptor.welcome() == ["welcome", "boot-2", hmac.digest(KEY, b"acceptor" + answered, "sha256")]
    for seal, name in zip(acceptor.seals(), (b"frames of the dialler", b"frames of the acceptor"), strict=True):
        cipher = AESGCM(hmac.digest(KEY, name + said, "sha256"))
        for number in range(3):
            assert seal.of(memoryview(b"body")) == cipher.encrypt(number.to_bytes(12, "big"), b"", b"body")


# Links


def with_secret(scenario: Any) -> None:
    async def main(world: World) -> None:
        world.secret = secret()
        await scenario(world)

    run(main)


def test_links_with_a_secret_carry_messages_pings_and_refusals() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, [1]), await world.node(1, [2])
        await world.clock.advance(3.0)
        one.links.send(2, ["a", b"x" * 100_000])
        two.links.send(1, ["b"])
        await rest()
        assert (two.got, one.got) == ([(1, ["a", b"x" * 100_000])], [(2, ["b"])])
        assert all(state.up for node in (one, two) for state in node.links.states())
        assert one.links.clocks()[2].wall(0.0) is not None
        two.verdict = HelloRefused(Reason.REMOVED, "gone")
        one.transports[-1].abort()
        await world.clock.advance(1.0)
        assert one.refusals[0] == (2, Reason.REMOVED, "gone")

    with_secret(scenario)


class _Knowing(Stranger):
    """Knows all that can be known but the secret."""

    async def say_hello(self, nonce: bytes = b"n" * 16) -> None:
        await self.say(*hello_frame(ONE, 2, nonce))


@pytest.mark.parametrize(
    "sent",
    [
        [["proof", b"p" * 32]],
        [["proof", b""]],
        [["raftkv"]],
        [[[1, 1, 2, 3]]],
        [[["map", b"forged"]]],
        [["proof", b"p" * 32], [["map", b"forged"]]],
    ],
)
def test_a_stranger_without_the_secret_is_heard_by_nobody(sent: list[list[Any]]) -> None:
    async def scenario(world: World) -> None:
        two = await world.node(2, [])
        stranger = _Knowing()
        await world.network.host("stranger").dial("n2:1", lambda: stranger)
        await stranger.say_hello()
        await stranger.write(b"".join(bytes(ENCODER.frame_of(frame)) for frame in sent))
        assert stranger.closed
        assert (two.got, two.hellos) == ([], [])
        assert not any(frame[0] == "welcome" for frame in stranger.frames)

    with_secret(scenario)


def _same(stranger: Stranger) -> Stranger:
    return stranger


def test_who_proves_nothing_cannot_choose_under_which_name_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        await world.node(2, [])
        for node in (1, 3, 4):
            stranger = _Knowing()
            await world.network.host("10.0.0.9:1").dial("n2:1", partial(_same, stranger))
            await stranger.say(*hello_frame(Identity("c", node, "i", "b"), 2, b"n" * 16))
            await stranger.say("proof", b"p" * 32)
            assert stranger.closed

    with_secret(scenario)
    lines = [record for record in caplog.records if "refused" in record.getMessage()]
    assert len({getattr(record, "limited_source", None) for record in lines}) == 1
    assert lines[0].getMessage().startswith("refused one that says it is node 1 at ")
    assert len(written(caplog)) == 1


async def _middle(world: World, injected: bytes, at: int) -> tuple[Node, Node]:
    """Nodes 1 and 2; who carries their bytes adds ``injected`` to the dialler's message number ``at``."""
    two = await world.node(2, [])
    connections: list[_Relay] = []

    def relay() -> _Relay:
        connections.append(_Relay(world, injected, at))
        return connections[-1]

    await world.network.host("middle").listen("middle:1", relay)
    one = await world.node(1, [])
    one.links.add_peer(2, "middle:1")
    for _ in range(5):
        await rest()
    return one, two


class _Relay(Stranger):
    """Passes all bytes on to node 2 and back."""

    def __init__(self, world: World, injected: bytes, at: int) -> None:
        super().__init__()
        self._world = world
        self._injected = injected
        self._at = at
        self._count = 0
        self._far: Stranger | None = None

    def data_received(self, data: bytes) -> None:
        import asyncio

        self._count += 1
        if self._count == self._at:
            data += self._injected
        asyncio.get_running_loop().create_task(self._pass(data))

    async def _pass(self, data: bytes) -> None:
        if self._far is None:
            near = self

            class Far(Stranger):
                def data_received(self, data: bytes) -> None:
                    near._transport.write(data)  # type: ignore[union-attr]

            self._far = Far()
            far = self._far
            await self._world.network.host("middle").dial("n2:1", lambda: far)
        await self._far.write(data)


@pytest.mark.parametrize(("at", "up"), [(1, False), (2, False), (3, True)])
def test_who_carries_the_bytes_cannot_add_a_message(at: int, up: bool) -> None:
    async def scenario(world: World) -> None:
        one, two = await _middle(world, framed(b"\x91\x91\xa6forged"), at)
        one.links.send(2, ["true"])
        for _ in range(5):
            await rest()
        assert (2, 1, True) in one.events or not up
        assert [message for _, message in two.got] in ([], [["true"]])

    with_secret(scenario)


def test_a_network_that_cannot_tell_who_speaks_needs_a_secret() -> None:
    async def scenario(world: World) -> None:
        two, one = await world.node(2, []), await world.node(1, [])
        one.doubted = "who is there?"
        one.links.add_peer(2, "n2:1")
        await rest()
        assert one.events == []
        assert two.hellos == []
        one.doubted, two.doubted = "", "who is it?"
        await world.clock.advance(1.0)
        assert one.refusals[0] == (2, Reason.NOT_PROVEN, "who is it?")
        assert two.hellos == []

    run(scenario)
