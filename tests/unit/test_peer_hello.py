"""The handshake: a node takes messages only from its own cluster, meant for itself, in a version it speaks."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.peer.frames import ProtocolViolation
from raftkv.peer.hello import (
    PROTOCOL_VERSION,
    Answer,
    Hello,
    HelloRefused,
    Identity,
    Reason,
    check_answer,
    check_hello,
    hello_frame,
    refuse_frame,
    welcome_frame,
)
from shards.slots import SLOT_RULE

ONE = Identity("cluster", 1, "inc-1", "boot-1")
TWO = Identity("cluster", 2, "inc-2", "boot-2")


def test_a_hello_says_who_dials() -> None:
    assert check_hello(hello_frame(ONE, 2), TWO) == Hello("cluster", 1, 2, "inc-1", "boot-1", b"")


@pytest.mark.parametrize(
    ("frame", "reason", "text"),
    [
        ([], Reason.MALFORMED, "not a raftkv node"),
        (["GET / HTTP/1.1"], Reason.MALFORMED, "not a raftkv node"),
        (
            [b"raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 2, "i", "b", b""],
            Reason.MALFORMED,
            "not a raftkv node",
        ),
        (["raftkv"], Reason.MALFORMED, "malformed hello"),
        (["raftkv", "1", "cluster", 1, 2, "i", "b", b""], Reason.MALFORMED, "malformed hello"),
        (["raftkv", True, "cluster", 1, 2, "i", "b", b""], Reason.MALFORMED, "malformed hello"),
        (
            ["raftkv", 3, "cluster", 1, 2, "i", "b", b""],
            Reason.VERSION,
            f"protocol version 3 is not supported, only {PROTOCOL_VERSION}",
        ),
        (["raftkv", PROTOCOL_VERSION, "cluster", 1, 2, "i", "b", b""], Reason.MALFORMED, "malformed hello"),
        (
            ["raftkv", PROTOCOL_VERSION, 1, "cluster", 1, 2, "i", "b", b""],
            Reason.SLOT_RULE,
            "by rule 2 here, not rule 1",
        ),
        (
            ["raftkv", PROTOCOL_VERSION, 0, "cluster", 1, 2, "i", "b", b""],
            Reason.SLOT_RULE,
            "by rule 2 here, none is given",
        ),
        (["raftkv", 99, "fields", "of the future"], Reason.VERSION, "protocol version 99 is not supported"),
        (["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 2, "i"], Reason.MALFORMED, "malformed hello"),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 2, "i", "b", "nonce"],
            Reason.MALFORMED,
            "malformed hello",
        ),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 2, "i", "b", b"short"],
            Reason.MALFORMED,
            "malformed hello",
        ),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", True, 2, "i", "b", b""],
            Reason.MALFORMED,
            "malformed hello",
        ),
        (["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 0, 2, "i", "b", b""], Reason.MALFORMED, "malformed hello"),
        (["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 2, "", "b", b""], Reason.MALFORMED, "malformed hello"),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 2, "i" * 201, "b", b""],
            Reason.MALFORMED,
            "malformed hello",
        ),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "foreign", 1, 2, "i", "b", b""],
            Reason.OTHER_CLUSTER,
            "this node belongs to cluster cluster, not 'foreign'",
        ),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 1, 3, "i", "b", b""],
            Reason.OTHER_NODE,
            "this is node 2, not node 3",
        ),
        (
            ["raftkv", PROTOCOL_VERSION, SLOT_RULE, "cluster", 2, 2, "i", "b", b""],
            Reason.OTHER_NODE,
            "node 2 is this node itself",
        ),
    ],
)
def test_a_hello_that_is_not_for_this_node_is_refused_with_the_reason(
    frame: list[Any], reason: Reason, text: str
) -> None:
    with pytest.raises(HelloRefused, match=text) as refused:
        check_hello(frame, TWO)
    assert refused.value.reason is reason


def test_answers_are_read_back() -> None:
    assert check_answer([*welcome_frame(TWO), b"proof"]) == Answer("boot-2", None, b"proof")
    for reason in (*Reason, 77):
        refusal = check_answer([*refuse_frame(HelloRefused(reason, "full")), b"proof"]).refusal
        assert refusal is not None
        assert (refusal.reason, str(refusal)) == (reason, "full")


def test_a_refusal_can_neither_flood_nor_forge_the_log() -> None:
    refusal = check_answer(["refuse", 1, "no\n2026 ERROR forged \x1b[31m" + "x" * 3000, b""]).refusal
    assert len(str(refusal)) == 500
    assert str(refusal).isprintable()


@pytest.mark.parametrize(
    "frame",
    [
        [],
        ["welcome"],
        ["welcome", 1, b""],
        ["welcome", "b"],
        ["welcome", "", b""],
        ["welcome", "b", "proof"],
        ["refuse", "no", b""],
        ["refuse", 1, b"no", b""],
        ["refuse", True, "no", b""],
        ["refuse", 1.0, "no", b""],
        ["hello"],
        [1],
        [["welcome", "b", b""]],
    ],
)
def test_any_other_answer_is_a_violation(frame: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        check_answer(frame)


@pytest.mark.parametrize("fields", [("", 1, "i", "b"), ("c", 0, "i", "b"), ("c", 1, "", "b"), ("c", 1, "i", "b" * 201)])
def test_an_identity_that_could_not_say_hello_is_refused_early(fields: tuple[str, int, str, str]) -> None:
    with pytest.raises(ValueError, match="Identity"):
        Identity(*fields)
