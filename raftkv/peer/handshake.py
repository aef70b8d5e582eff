"""Both sides of a link's handshake, without I/O: how two nodes prove who they are to each other.

Where the network proves who is at the other end, as by certificates, a hello and its answer are enough. Else both sides
prove that they know the cluster's secret: HMAC-SHA-256 over the role, the hello, both nonces and, for the acceptor, its
answer. So no proof can be used again, for the other role, or for another answer. The dialler proves first: who does not
know the secret gets no proof of any kind from an acceptor, nor anything of what it knows of nodes.

Such a proof shows that a node of the cluster speaks, not which one, and hides nothing. Once it is given, both
directions of the connection have a key of their own for the tags of frames (:class:`raftkv.peer.frames.Tag`).
"""

from __future__ import annotations

import hmac
import random
from enum import Enum
from typing import Any, Final

import msgpack

from raftkv.peer.frames import CHECKSUM, ProtocolViolation, Seal, Tag
from raftkv.peer.hello import (
    NONCE_BYTES,
    Hello,
    HelloRefused,
    Identity,
    Reason,
    challenge_frame,
    check_answer,
    check_challenge,
    check_hello,
    check_proof,
    hello_frame,
    proof_frame,
    refuse_frame,
    welcome_frame,
)

MIN_SECRET_BYTES: Final = 16
"""A shorter secret could be guessed from one handshake that somebody has heard."""

_BEFORE_PROOF: Final = (
    Reason.MALFORMED,
    Reason.VERSION,
    Reason.OTHER_CLUSTER,
    Reason.OTHER_NODE,
    Reason.SLOT_RULE,
    Reason.NOT_PROVEN,
)
"""Refusals that an acceptor may give without a proof; a dialler ends itself on none of them."""


class _Use(Enum):
    """What a MAC is for: none is valid for another use."""

    DIALLER = b"dialler"
    ACCEPTOR = b"acceptor"
    FRAMES_OF_DIALLER = b"frames of the dialler"
    FRAMES_OF_ACCEPTOR = b"frames of the acceptor"


class Secret:
    """What all nodes of a cluster know and nobody else. ``rng`` draws nonces: one that nobody can predict."""

    def __init__(self, key: bytes, rng: random.Random) -> None:
        if len(key) < MIN_SECRET_BYTES:
            raise ValueError(f"a secret has at least {MIN_SECRET_BYTES} bytes, not {len(key)}")
        self._key = key
        self._rng = rng

    def nonce(self) -> bytes:
        return self._rng.randbytes(NONCE_BYTES)

    def mac(self, use: _Use, *what: Any) -> bytes:
        packed: bytes = msgpack.packb(what)
        return hmac.digest(self._key, use.value + packed, "sha256")


class Dialling:
    """The dialler's side. ``hello`` is its first frame; seals and ``boot`` are known once it is ``welcomed``.

    ``boot``: the acceptor's start.
    """

    def __init__(self, identity: Identity, to_node: int, secret: Secret | None) -> None:
        self.welcomed = False
        self.boot = ""
        self.hello = hello_frame(identity, to_node, b"" if secret is None else secret.nonce())
        self._secret = secret
        self._challenge: bytes | None = None

    def answer(self, frame: list[Any]) -> list[Any] | None:
        """What to say to the acceptor's next frame, None if nothing.

        Raises :class:`HelloRefused` as the acceptor did, or :class:`ProtocolViolation`.
        """
        if self._secret is not None and self._challenge is None:
            self._challenge = check_challenge(frame)
            if self._challenge is not None:
                return proof_frame(self._secret.mac(_Use.DIALLER, self.hello, self._challenge))
        answer = check_answer(frame)
        proven = self._proven(frame, answer.proof)
        if answer.refusal is not None:
            if not proven and answer.refusal.reason not in _BEFORE_PROOF:
                raise ProtocolViolation("it refused this node without a proof of the cluster's secret")
            raise answer.refusal
        if not proven:
            raise ProtocolViolation("it does not know the cluster's secret")
        self.boot = answer.boot
        self.welcomed = True
        return None

    def _proven(self, frame: list[Any], proof: bytes) -> bool:
        if self._secret is None:
            return True
        if self._challenge is None:
            return False
        return hmac.compare_digest(proof, self._secret.mac(_Use.ACCEPTOR, self.hello, self._challenge, frame[:-1]))

    def seals(self) -> tuple[Seal, Seal]:
        """Those of the frames of the dialler and of the acceptor, from the welcome on."""
        return _seals(self._secret, self.hello, self._challenge)


class Accepting:
    """The acceptor's side. ``hello``: what the dialler said of itself, which need not be true before it is proven."""

    def __init__(self, identity: Identity, secret: Secret | None) -> None:
        self.hello: Hello | None = None
        self._identity = identity
        self._secret = secret
        self._frame: list[Any] = []
        self._challenge = b""
        self._proven = False

    def take(self, frame: list[Any]) -> list[Any] | None:
        """What to say to the dialler's next frame; None once it has said and proven all. Raises HelloRefused."""
        if self.hello is None:
            self.hello = check_hello(frame, self._identity)
            self._frame = frame
            if bool(self.hello.nonce) != bool(self._secret):
                raise HelloRefused(Reason.NOT_PROVEN, "one of the two nodes has a secret of the cluster, one has TLS")
            if self._secret is None:
                return None
            self._challenge = self._secret.nonce()
            return challenge_frame(self._challenge)
        assert self._secret is not None
        proof = check_proof(frame)
        if not hmac.compare_digest(proof, self._secret.mac(_Use.DIALLER, self._frame, self._challenge)):
            raise HelloRefused(Reason.NOT_PROVEN, "it does not know the cluster's secret")
        self._proven = True
        return None

    def welcome(self) -> list[Any]:
        """The last frame, if the dialler is welcome."""
        return self._signed(welcome_frame(self._identity))

    def refuse(self, refusal: HelloRefused) -> list[Any]:
        """The last frame, if it is not."""
        return self._signed(refuse_frame(refusal))

    def _signed(self, frame: list[Any]) -> list[Any]:
        if self._secret is None or not self._proven:
            return [*frame, b""]
        return [*frame, self._secret.mac(_Use.ACCEPTOR, self._frame, self._challenge, frame)]

    def seals(self) -> tuple[Seal, Seal]:
        """Those of the frames of the dialler and of the acceptor, from the welcome on."""
        return _seals(self._secret, self._frame, self._challenge)


def _seals(secret: Secret | None, hello: list[Any], challenge: bytes | None) -> tuple[Seal, Seal]:
    if secret is None:
        return CHECKSUM, CHECKSUM
    of_dialler, of_acceptor = (
        Tag(secret.mac(use, hello, challenge)) for use in (_Use.FRAMES_OF_DIALLER, _Use.FRAMES_OF_ACCEPTOR)
    )
    return of_dialler, of_acceptor
