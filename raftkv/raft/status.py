"""What a replica tells an operator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A replica as an operator sees it.

    ``match``: on the leader, the last entry that each voter and learner is known to hold. ``voters``: those in effect.
    ``amnesia``: voters that have lost what they had acknowledged.
    """

    group: int
    role: int
    leader: int
    term: int
    last_index: int
    commit_index: int
    applied_index: int
    snapshot_index: int
    match: dict[int, int]
    voters: tuple[int, ...]
    learners: tuple[int, ...]
    amnesia: tuple[int, ...]
