"""The handshake: a node takes messages only from its own cluster, meant for itself, in a version it speaks."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.peer.frames import ProtocolViolation
from raftkv.peer.hello import (
    PROTOCOL_VERSION,
    Hello,
    Identity,
    Refused,
    check_answer,
    check_hello,
    hello_frame,
    refuse_frame,
    welcome_frame,
)

ONE = Identity("cluster", 1, "inc-1", "boot-1")
TWO = Identity("cluster", 2, "inc-2", "boot-2")


def test_a_hello_says_who_dials() -> None:
    assert check_hello(hello_frame(ONE, 2), TWO) == Hello("cluster", 1, 2, "inc-1", "boot-1")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ([], "not a raftkv node"),
        (["GET / HTTP/1.1"], "not a raftkv node"),
        ([b"raftkv", PROTOCOL_VERSION, "cluster", 1, 2, "i", "b"], "not a raftkv node"),
        (["raftkv"], "malformed hello"),
        (["raftkv", "1", "cluster", 1, 2, "i", "b"], "malformed hello"),
        (["raftkv", True, "cluster", 1, 2, "i", "b"], "malformed hello"),
        (["raftkv", 3, "fields", "of the future"], "protocol version 3 is not spoken here"),
        (["raftkv", PROTOCOL_VERSION, "cluster", 1, 2, "i"], "malformed hello"),
        (["raftkv", PROTOCOL_VERSION, "cluster", 1, 2, "i", "b", 0], "malformed hello"),
        (["raftkv", PROTOCOL_VERSION, "cluster", True, 2, "i", "b"], "malformed hello"),
        (["raftkv", PROTOCOL_VERSION, "cluster", 0, 2, "i", "b"], "malformed hello"),
        (["raftkv", PROTOCOL_VERSION, "cluster", 1, 2, "", "b"], "malformed hello"),
        (["raftkv", PROTOCOL_VERSION, "cluster", 1, 2, "i" * 201, "b"], "malformed hello"),
        (
            ["raftkv", PROTOCOL_VERSION, "foreign", 1, 2, "i", "b"],
            "this node belongs to cluster cluster, not 'foreign'",
        ),
        (["raftkv", PROTOCOL_VERSION, "cluster", 1, 3, "i", "b"], "this is node 2, not node 3"),
        (["raftkv", PROTOCOL_VERSION, "cluster", 2, 2, "i", "b"], "node 2 is this node itself"),
    ],
)
def test_a_hello_that_is_not_for_this_node_is_refused_with_the_reason(frame: list[Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check_hello(frame, TWO)


def test_answers_are_read_back() -> None:
    assert check_answer(welcome_frame(TWO)) == "boot-2"
    with pytest.raises(Refused, match="^full$"):
        check_answer(refuse_frame("full"))


def test_a_refusal_can_neither_flood_nor_forge_the_log() -> None:
    with pytest.raises(Refused) as caught:
        check_answer(["refuse", "no\n2026 ERROR forged \x1b[31m" + "x" * 3000])
    assert len(str(caught.value)) == 500
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "frame", [[], ["welcome"], ["welcome", 1], ["refuse", b"no"], ["hello"], [1], [["welcome", "b"]]]
)
def test_any_other_answer_is_a_violation(frame: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        check_answer(frame)


@pytest.mark.parametrize("fields", [("", 1, "i", "b"), ("c", 0, "i", "b"), ("c", 1, "", "b"), ("c", 1, "i", "b" * 201)])
def test_an_identity_that_could_not_say_hello_is_refused_early(fields: tuple[str, int, str, str]) -> None:
    with pytest.raises(ValueError, match="Identity"):
        Identity(*fields)
