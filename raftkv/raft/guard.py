"""The append guard: what a follower makes of an append before the library sees it.

The library removes every entry behind the previous index of an append, also entries that match and were acknowledged,
and it commits up to whatever the leader has committed. Here, only a true conflict ever removes an entry, and only what
the message itself has verified is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raftkv.raft.log import BrokenInvariant, GroupLog
from raftkv.raft.ready import Entry


class AppendDecision(NamedTuple):
    """What is handed to the library, and what is answered.

    ``matches``: the own log holds the entry before those of the append. If so, ``entries`` are the ones that are new,
    to be added behind (``previous``, ``previous_term``), and ``next_index`` follows the last entry that the append
    vouches for. If not, ``next_index`` is the entry from which the leader should try again.
    """

    matches: bool
    previous: int
    previous_term: int
    entries: list[Entry]
    next_index: int


def judge(
    log: GroupLog, committed: int, previous: int, previous_term: int, raw: Sequence[tuple[int, bytes]]
) -> AppendDecision:
    """Look at an append of ``raw`` (term, command) behind (``previous``, ``previous_term``)."""
    entries: list[Entry] = [(item[1], previous + 1 + at, item[0]) for at, item in enumerate(raw)]
    vouched = previous + len(entries)
    if previous < committed:
        # Every leader holds the committed prefix, so it matches without looking.
        entries = entries[committed - previous :]
        previous, previous_term = committed, _term_at(log, committed)
        vouched = max(vouched, committed)
    held_term = log.term_at(previous)
    if held_term != previous_term:
        hint = log.last_index + 1
        if held_term is not None:
            hint = max(committed + 1, log.first_of_term(previous))
        return AppendDecision(False, previous, previous_term, [], hint)
    held = 0
    for entry in entries:
        if log.term_at(entry[1]) != entry[2]:
            break
        held += 1
    new = entries[held:]
    at = new[0][1] - 1 if new else log.last_index
    return AppendDecision(True, at, _term_at(log, at), new, vouched + 1)


def _term_at(log: GroupLog, index: int) -> int:
    term = log.term_at(index)
    if term is None:
        raise BrokenInvariant(f"entry {index} is missing")
    return term


def superfluous(log: GroupLog, committed: int, index: int, term: int) -> bool:
    """Whether a replica with this log needs no snapshot that ends with entry ``index`` of ``term``.

    A log that holds the snapshot's last entry holds all that the snapshot covers: dropping its tail would drop entries
    that were acknowledged.
    """
    return index <= committed or log.term_at(index) == term
