"""Persist before send, asserted on values: what a step says follows only from what it and those before it persist."""

from __future__ import annotations

from typing import Any

from raftkv.raft.messages import WAITS, Type
from raftkv.raft.ready import Appended, Covered, HardState, Ready, Truncated


class LabError(Exception):
    """The laboratory was used wrongly, or a replica says more than it persisted, or is busy without end."""


class Persisted:
    """What the records of one replica add up to. ``term``, ``vote``, ``last``: what it started with."""

    def __init__(self, node: int, term: int, vote: int, last: int) -> None:
        self._node = node
        self._term = term
        self._vote = vote
        self._last = last

    def take(self, ready: Ready) -> None:
        """Raises LabError if ``ready`` says more than what will be on disk by then."""
        for record in ready.records:
            if isinstance(record, HardState):
                self._term, self._vote = record.term, record.vote
            elif isinstance(record, Appended):
                self._last = record.index
            elif isinstance(record, Truncated):
                self._last = min(self._last, record.first - 1)
            elif isinstance(record, Covered):
                self._last = max(self._last, record.index)
        early = [message for _, message in ready.messages if WAITS[message[1]]]
        false = [message for peer, message in ready.after if not self._true(peer, message)]
        if early or false:
            raise LabError(
                f"node {self._node} says {[*early, *false]} with term {self._term}, vote {self._vote}, "
                f"entries up to {self._last}"
            )

    def _true(self, peer: int, message: list[Any]) -> bool:
        kind, fields = message[1], message[2:]
        if kind == Type.ACK:
            holds = not fields[3] or fields[4] - 1 <= self._last
            # A later term may have been heard of in the same turn: then this counts for nothing any more.
            return bool(fields[0] < self._term or (fields[0] == self._term and holds))
        if kind in (Type.VOTE, Type.VOTE_REPLY):
            mine = self._vote == (self._node if kind == Type.VOTE else peer)
            return bool(fields[0] < self._term or (fields[0] == self._term and mine))
        return kind == Type.PREVOTE_REPLY or bool(fields[0] <= self._term)
