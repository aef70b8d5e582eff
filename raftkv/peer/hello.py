"""The handshake of a link, as plain values.

The dialler sends a hello frame ``["raftkv", version, slot rule, cluster id, from, to, incarnation, boot]``. The
acceptor answers on the same connection ``["welcome", boot]`` or ``["refuse", reason, text]``. Nothing else is sent
before the welcome.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from raftkv.errors import RaftKVError
from raftkv.peer.frames import ProtocolViolation
from shards.slots import SLOT_RULE, rule_refusal

MAGIC: Final = "raftkv"
PROTOCOL_VERSION: Final = 5
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


def hello_frame(identity: Identity, to_node: int) -> list[Any]:
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
    if [type(field) for field in frame[2:]] != [int, str, int, int, str, str]:
        raise HelloRefused(Reason.MALFORMED, "malformed hello")
    _, _, rule, cluster_id, node, to_node, incarnation, boot = frame
    if node < 1 or not incarnation or not boot or max(len(cluster_id), len(incarnation), len(boot)) > _MAX_NAME:
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
    return Hello(cluster_id, node, to_node, incarnation, boot)


def welcome_frame(identity: Identity) -> list[Any]:
    """The acceptor's yes."""
    return ["welcome", identity.boot]


def refuse_frame(refusal: HelloRefused) -> list[Any]:
    """The acceptor's no; a long text is cut."""
    return ["refuse", int(refusal.reason), str(refusal)[:_MAX_TEXT]]


def check_answer(frame: list[Any]) -> str:
    """The boot id in a welcome. Raises :class:`HelloRefused` as the acceptor did, or :class:`ProtocolViolation`."""
    match frame:
        case ["welcome", str(boot)]:
            return boot
        case ["refuse", int(reason), str(text)] if type(reason) is int:
            # The text goes into the log: no line breaks or control characters of the other side's making.
            raise HelloRefused(reason, "".join(c if c.isprintable() else "?" for c in text[:_MAX_TEXT]))
        case _:
            raise ProtocolViolation("the answer to the hello is neither welcome nor refuse")
