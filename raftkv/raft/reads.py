"""Reads that wait until a leader may answer them.

Both modes ask one question: was this node still the leader after the read had arrived? ``lease`` answers it from the
time of the last contact with a majority (Ongaro, dissertation, 6.4.1); ``quorum`` from a round of appends sent after
the read arrived (ReadIndex, 6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from raftkv.errors import Code

ReadDone = Callable[[Code], None]
"""Called once: OK = read the state machine now, in this very call; else why not."""


@dataclass(slots=True)
class _Waiting:
    seq: int
    index: int
    quorum: bool
    done: ReadDone


@dataclass(slots=True)
class ReadQueue:
    """Reads of one leader. ``seq`` numbers the leader's appends: a round that starts later has a greater one."""

    _waiting: list[_Waiting] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, seq: int, commit: int, quorum: bool, done: ReadDone) -> None:
        """A read arrived while ``seq`` was the last append sent and ``commit`` the commit index."""
        self._waiting.append(_Waiting(seq, commit, quorum, done))

    def wants_round(self, round_seq: int, confirmed: int) -> bool:
        """Whether to send a round of appends: a read arrived after the latest round began, and that round is over."""
        if not self._waiting or round_seq > confirmed:
            return False
        return any(read.seq >= round_seq for read in self._waiting)

    def take(self, applied: int, confirmed: int, lease: bool) -> list[ReadDone]:
        """Those that may be served once entry ``applied`` is applied.

        ``confirmed``: the latest seq that a majority has acknowledged; ``lease``: whether the lease holds now.
        """
        ready: list[_Waiting] = []
        kept: list[_Waiting] = []
        for read in self._waiting:
            sure = read.seq < confirmed or (lease and not read.quorum)
            (ready if sure and read.index <= applied else kept).append(read)
        self._waiting = kept
        return [read.done for read in ready]

    def drop(self) -> list[ReadDone]:
        """The reads that will not be served here."""
        waiting, self._waiting = self._waiting, []
        return [read.done for read in waiting]
