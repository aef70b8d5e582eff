"""Nodes tell each other whether they have room for new data, and a leader judges by the majority."""

from __future__ import annotations

from typing import Any, cast

import pytest

from raftkv.node import messages
from raftkv.node.room import Full, Room
from raftkv.raft import RaftGroup


class FakeGroup:
    def __init__(self, voters: tuple[int, ...], answering: set[int]) -> None:
        self.voters = voters
        self.answering = answering

    def answers(self, peer: int) -> bool:
        return peer in self.answering


class World:
    def __init__(self) -> None:
        self.sent: list[tuple[int, list[Any]]] = []
        self.room = Room(1, lambda: [2, 3], lambda node, message: self.sent.append((node, message)))

    def refusal(self, voters: tuple[int, ...], answering: set[int]) -> str:
        return self.room.refusal(cast(RaftGroup, FakeGroup(voters, answering)))


def test_peers_hear_what_changes_and_new_links_what_is() -> None:
    world = World()
    world.room.look(Full())
    assert world.sent == []
    world.room.look(Full(disk=True))
    world.room.look(Full(disk=True))
    assert world.sent == [(2, ["room", True, False]), (3, ["room", True, False])]
    world.sent.clear()
    world.room.greet(3)
    world.room.look(Full())
    assert world.sent == [(3, ["room", True, False]), (2, ["room", False, False]), (3, ["room", False, False])]


def test_a_node_that_has_told_nothing_has_room() -> None:
    world = World()
    assert world.room.of(2) == Full()
    world.room.hear(2, Full(disk=True))
    assert world.room.of(2).disk
    world.room.hear(2, Full())
    assert not world.room.of(2).disk


def test_new_data_are_taken_while_a_majority_that_answers_has_room() -> None:
    world = World()
    assert world.refusal((1, 2, 3), set()) == "", "nobody is full: what cannot be committed is another matter"
    world.room.hear(2, Full(disk=True))
    assert world.refusal((1, 2, 3), {2, 3}) == ""
    assert "the disk of node 2 is nearly full" in world.refusal((1, 2, 3), {2})
    world.room.look(Full(disk=True))
    assert "the disk of node 1, 2 is nearly full" in world.refusal((1, 2, 3), {2, 3})
    assert world.refusal((1,), set()) != ""
    assert world.refusal((1, 3, 4), {3, 4}) == ""


@pytest.mark.parametrize("message", [["room"], ["room", True], ["room", 1, 0], ["room", True, True, True]])
def test_malformed_messages_are_refused(message: list[Any]) -> None:
    with pytest.raises(messages.Malformed):
        messages.room(message)


def test_a_message_is_read_as_it_was_sent() -> None:
    world = World()
    world.room.look(Full(disk=True))
    assert Full(*messages.room(world.sent[0][1])) == Full(disk=True)
