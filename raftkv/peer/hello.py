"""The frames of a link's handshake, as plain values; :mod:`raftkv.peer.handshake` has their order.

The dialler sends a hello ``["raftkv", version, slot rule, cluster id, from, to, incarnation, boot, nonce]``. With a
secret between them the acceptor answers ``["challenge", nonce]`` and the dialler ``["proof", proof]``. The acceptor
ends with ``["welcome", boot, proof]`` or ``["refuse", reason, text, proof]``. Nothing else is sent before the welcome.
Where no secret is needed, nonces and proofs are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from raftkv.errors import RaftKVError
from raftkv.peer.frames import ProtocolViolation
from shards.slots import SLOT_RULE, rule_refusal

MAGIC: Final = "raftkv"
PROTOCOL_VERSION: Final = 8
NONCE_BYTES: Final = 16
MAX_HANDSHAKE_BYTES: Final = 4096
"""Longest frame before a link is welcomed: a stranger cannot make a node buffer more."""
_MAX_TEXT: Final = 500
_MAX_NAME: Final = 200


class Reason(IntEnum):
    """Why a hello is refused. Numbers are part of the protocol; a newer node may have others."""

    MALFORMED = 1
    VERSION = 2
    OTHER_CLUSTER = 3
    OTHER_NODE = 4
    NOT_A_MEMBER = 5
    REMOVED = 6
    REPLACED_FOLDER = 7
    CANNOT_REMEMBER = 8
    SLOT_RULE = 9
    NOT_PROVEN = 10


class HelloRefused(RaftKVError):
    """A hello is not welcome. ``reason`` is for the dialler to act on, the message for people."""

    def __init__(self, reason: int, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is: its cluster, its number, its data folder (``incarnation``) and its current start (``boot``)."""

    cluster_id: str
    node: int
    incarnation: str
    boot: str

    def __post_init__(self) -> None:
        for name in (self.cluster_id, self.incarnation, self.boot):
            if not name or len(name) > _MAX_NAME:
                raise ValueError(f"an identity's names have 1 to {_MAX_NAME} characters: {self}")
        if self.node < 1:
            raise ValueError(f"node ids start at 1: {self}")


@dataclass(frozen=True, slots=True)
class Hello:
    """What a dialler said of itself."""

    cluster_id: str
    node: int
    to_node: int
    incarnation: str
    boot: str
    nonce: bytes


def hello_frame(identity: Identity, to_node: int, nonce: bytes = b"") -> list[Any]:
    """The messages of the first frame from ``identity`` to ``to_node``."""
    return [
        MAGIC,
        PROTOCOL_VERSION,
        SLOT_RULE,
        identity.cluster_id,
        identity.node,
        to_node,
        identity.incarnation,
        identity.boot,
        nonce,
    ]


def check_hello(frame: list[Any], identity: Identity) -> Hello:
    """The hello in ``frame`` if it is meant for ``identity``. Raises :class:`HelloRefused`."""
    if not frame or frame[0] != MAGIC:
        raise HelloRefused(Reason.MALFORMED, "not a raftkv node")
    # The version comes before the rest: another version may have other fields.
    if len(frame) < 2 or type(frame[1]) is not int:
        raise HelloRefused(Reason.MALFORMED, "malformed hello")
    if frame[1] != PROTOCOL_VERSION:
        text = f"protocol version {frame[1]} is not supported, only {PROTOCOL_VERSION}"
        raise HelloRefused(Reason.VERSION, text)
    if [type(field) for field in frame[2:]] != [int, str, int, int, str, str, bytes]:
        raise HelloRefused(Reason.MALFORMED, "malformed hello")
    _, _, rule, cluster_id, node, to_node, incarnation, boot, nonce = frame
    names = (cluster_id, incarnation, boot)
    if (
        node < 1
        or not incarnation
        or not boot
        or max(map(len, names)) > _MAX_NAME
        or len(nonce) not in (0, NONCE_BYTES)
    ):
        raise HelloRefused(Reason.MALFORMED, "malformed hello")
    if refusal := rule_refusal(rule):
        raise HelloRefused(Reason.SLOT_RULE, refusal)
    if cluster_id != identity.cluster_id:
        text = f"this node belongs to cluster {identity.cluster_id}, not {cluster_id!r}"
        raise HelloRefused(Reason.OTHER_CLUSTER, text)
    if to_node != identity.node:
        raise HelloRefused(Reason.OTHER_NODE, f"this is node {identity.node}, not node {to_node}")
    if node == identity.node:
        raise HelloRefused(Reason.OTHER_NODE, f"node {node} is this node itself")
    return Hello(cluster_id, node, to_node, incarnation, boot, nonce)


def challenge_frame(nonce: bytes) -> list[Any]:
    """The acceptor's question for a proof."""
    return ["challenge", nonce]


def check_challenge(frame: list[Any]) -> bytes | None:
    """The acceptor's nonce, None if it answered something else. Raises :class:`ProtocolViolation` for a wrong nonce."""
    match frame:
        case ["challenge", bytes(nonce)] if len(nonce) == NONCE_BYTES:
            return nonce
        case ["challenge", *_]:
            raise ProtocolViolation("malformed challenge")
    return None


def proof_frame(proof: bytes) -> list[Any]:
    """The dialler's answer to a challenge."""
    return ["proof", proof]


def check_proof(frame: list[Any]) -> bytes:
    """The dialler's proof. Raises :class:`HelloRefused`."""
    match frame:
        case ["proof", bytes(proof)]:
            return proof
    raise HelloRefused(Reason.MALFORMED, "the answer to the challenge is no proof")


@dataclass(frozen=True, slots=True)
class Answer:
    """How the acceptor decided: with ``boot`` it welcomes the dialler, else ``refusal`` says why not."""

    boot: str
    refusal: HelloRefused | None
    proof: bytes


def welcome_frame(identity: Identity) -> list[Any]:
    """The acceptor's yes, without its proof."""
    return ["welcome", identity.boot]


def refuse_frame(refusal: HelloRefused) -> list[Any]:
    """The acceptor's no, without its proof; a long text is cut."""
    return ["refuse", int(refusal.reason), str(refusal)[:_MAX_TEXT]]


def check_answer(frame: list[Any]) -> Answer:
    """The acceptor's decision. Raises :class:`ProtocolViolation` if it is none."""
    match frame:
        case ["welcome", str(boot), bytes(proof)] if boot:
            return Answer(boot, None, proof)
        case ["refuse", int(reason), str(text), bytes(proof)] if type(reason) is int:
            # The text goes into the log: no line breaks or control characters of the other side's making.
            shown = "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT])
            return Answer("", HelloRefused(reason, shown), proof)
    raise ProtocolViolation("the answer to the hello is neither welcome nor refuse")
