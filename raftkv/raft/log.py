"""The log of one group: entries in memory, every change also recorded for the node's WAL."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from raftkv.errors import RaftKVError
from raftkv.raft.configurations import CONFIG, Configurations, unpack_voters
from raftkv.raft.ready import Appended, Covered, Entry, HardState, Outputs, Truncated

NO_OP: Final = b"\x01"
"""Command of the entry with which a leader opens its term, and of the log's base."""

FIRST_INDEX: Final = 1
"""Index of the base of a log that was never compacted; its term is 0. The empty state is its snapshot."""


class BrokenInvariant(RaftKVError):
    """An invariant of Raft is broken; the node stops so that the damage does not spread."""


class GroupLog:
    """Term, vote and entries of one replica.

    ``entries`` begins with the base: the last entry covered by the snapshot (or entry 1, term 0, of every fresh log).
    Appending and truncation touch memory and the outputs only, so they never fail; a failing disk stops the node
    elsewhere. The commit index is never stored: a restarted node learns it again from a leader. ``base_voters``: the
    voters as of the base; ``configurations`` has those that the entries name. ``bytes``: of all commands held;
    ``syncing_bytes``: of those added that are not on stable storage yet. ``vote``: 0 = none in this term.
    """

    def __init__(
        self,
        group: int,
        outputs: Outputs,
        base: tuple[int, int],
        base_voters: Sequence[int],
        entries: Sequence[Entry],
        term: int,
        vote: int,
    ) -> None:
        self._group = group
        self._outputs = outputs
        self.entries: list[Entry] = [(NO_OP, base[0], base[1]), *entries]
        self.term = term
        self.vote = vote
        self._commit = base[0]
        self._syncing: deque[tuple[int, int, int]] = deque()  # (number of the record, index, bytes)
        self.syncing_bytes = 0
        self.snapshot: tuple[int, int, int] | None = None
        """Index, term and bytes of the latest snapshot."""
        self.durable_index = self.last_index
        self.bytes = sum(len(entry[0]) for entry in entries)
        self.configurations = Configurations(base_voters)
        for command, index, _ in entries:
            self._note(command, index)
        for position, entry in enumerate(self.entries):
            if entry[1] != base[0] + position:
                raise BrokenInvariant(f"group {group}: entry {entry[1]} at position {position} after base {base[0]}")

    # -- questions

    @property
    def base_index(self) -> int:
        return self.entries[0][1]

    @property
    def last_index(self) -> int:
        return self.entries[-1][1]

    @property
    def last_term(self) -> int:
        return self.entries[-1][2]

    def term_at(self, index: int) -> int | None:
        """Term of entry ``index``, None if the log does not hold it (the base counts as held)."""
        position = index - self.entries[0][1]
        if 0 <= position < len(self.entries):
            return self.entries[position][2]
        return None

    def between(self, start: int, stop: int, max_bytes: int | None = None) -> list[Entry]:
        """Entries ``start`` to ``stop`` - 1, at least one if there is one, else up to ``max_bytes`` of commands."""
        base, held = self.entries[0][1], self.entries
        # The durable log may end before the base: a durable snapshot can overtake a log that waits for disk space.
        first, end = start - base, max(min(stop - base, len(held)), 0)
        if max_bytes is not None:
            # Found before it is copied: the tail may be long, and this is called once for each part of it.
            size = 0
            for position in range(first, end):
                size += len(held[position][0])
                if size > max_bytes and position > first:
                    end = position
                    break
        return held[first:end]

    def first_of_term(self, index: int) -> int:
        """Smallest index above the base from which on all entries up to ``index`` have its term."""
        term = self.term_at(index)
        while index - 1 > self.base_index and self.term_at(index - 1) == term:
            index -= 1
        return index

    def tail(self, index: int, most: int, most_bytes: int) -> int:
        """The index to compact to so that at most ``most`` entries and ``most_bytes`` bytes up to ``index`` stay."""
        position = index - self.base_index
        last = max(position - most, 0)
        while position > last:
            most_bytes -= len(self.entries[position][0])
            if most_bytes < 0:
                break
            position -= 1
        return self.base_index + position

    # -- changes

    def set_hard_state(self, term: int, vote: int) -> None:
        if (term, vote) != (self.term, self.vote):
            self.term, self.vote = term, vote
            self._outputs.record(HardState(term, vote))

    def append(self, command: bytes, index: int, term: int) -> None:
        if index != self.last_index + 1:
            raise BrokenInvariant(f"group {self._group}: entry {index} added after {self.last_index}")
        self.entries.append((command, index, term))
        self.bytes += len(command)
        self._note(command, index)
        self._outputs.record(Appended(index, term, command))
        self._syncing.append((self._outputs.recorded, index, len(command)))
        self.syncing_bytes += len(command)

    def _note(self, command: bytes, index: int) -> None:
        if command.startswith(CONFIG):
            try:
                self.configurations.add(index, unpack_voters(command))
            except ValueError as problem:
                raise BrokenInvariant(f"group {self._group}: entry {index}: {problem}") from None

    def truncate(self, first: int) -> None:
        """Remove the entries from ``first`` on, none of which is committed."""
        if first <= self._commit:
            raise BrokenInvariant(
                f"group {self._group}: truncation from {first} would remove committed entries up to {self._commit}"
            )
        position = first - self.base_index
        self.bytes -= sum(len(entry[0]) for entry in self.entries[position:])
        del self.entries[position:]
        self.configurations.truncate(first)
        self._outputs.record(Truncated(first))
        while self._syncing and self._syncing[-1][1] >= first:
            self.syncing_bytes -= self._syncing.pop()[2]
        self.durable_index = min(self.durable_index, first - 1)

    def on_synced(self, count: int) -> None:
        """The first ``count`` records of this group are on stable storage."""
        while self._syncing and self._syncing[0][0] <= count:
            _, self.durable_index, size = self._syncing.popleft()
            self.syncing_bytes -= size

    def commit(self, index: int) -> None:
        """Nothing up to ``index`` may be truncated any more."""
        self._commit = max(self._commit, index)

    def cover(self, index: int, term: int, size: int) -> None:
        """There is a durable snapshot of (``index``, ``term``), of ``size`` bytes."""
        self.snapshot = (index, term, size)
        self._outputs.record(Covered(index, term))

    def compact(self, index: int) -> None:
        """Forget entries before ``index``, which becomes the base. The caller has a durable snapshot up to there."""
        count = index - self.base_index
        if count <= 0:
            return
        self.bytes -= sum(len(entry[0]) for entry in self.entries[1 : count + 1])
        base = self.entries[count]
        del self.entries[:count]
        self.entries[0] = (NO_OP, base[1], base[2])
        self.configurations.compact(index)

    def reset(self, index: int, term: int, voters: Sequence[int]) -> None:
        """Replace the whole log by the base (``index``, ``term``, ``voters``) of a snapshot that was just installed."""
        if self.last_index > self.base_index:
            # The log contradicts the snapshot, so recovery must not add its entries behind the snapshot.
            self._outputs.record(Truncated(self.base_index + 1))
        self.entries = [(NO_OP, index, term)]
        self.configurations = Configurations(voters)
        self._syncing.clear()
        self.syncing_bytes = 0
        self.durable_index = index
        self._commit = index
        self.bytes = 0
