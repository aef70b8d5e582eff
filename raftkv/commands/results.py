"""What commands answer."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

from raftkv.errors import Code

_Small = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Large = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_LargeOrNone = Annotated[int, Meta(ge=-1, le=2**63 - 1)]


class Answer(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """What a question to a slot or group answers besides a record."""

    def size(self) -> int:
        """Bytes of its payload."""
        return 0


class ScanPage(Answer, frozen=True, tag=8):
    """Records in the order of the scan: (key, value, version, milliseconds left or -1).

    It has all of the keys from the scan's start to ``next``, or in reverse from its end down to ``next``, of the
    ``slots`` that were served when it was read, a bit for each as in the scan. ``next`` belongs to the following page;
    None: the scan's range is over. ``count``: how many there are, of a scan that counts and has no records.
    """

    records: tuple[tuple[bytes, bytes, int, int], ...]
    slots: bytes
    next: bytes | None
    count: _Large = 0

    def size(self) -> int:
        return len(self.slots) + len(self.next or b"") + sum(len(row[0]) + len(row[1]) for row in self.records)


class ClusterReport(Answer, frozen=True, tag=2):
    """The meta group's time (ms), and its state, encoded: what :meth:`raftkv.store.meta_state.MetaState.from_wire`
    reads."""

    time: int
    state: bytes

    def size(self) -> int:
        return len(self.state)


class MoveReport(Answer, frozen=True, tag=3):
    """How far a slot move is in a group.

    ``source``: "none", "tracked", "frozen", "released" or "cancelled". ``target``: "none", "importing", "staged",
    "active" or "cancelled". ``seq``, ``cursor``: of the last chunk imported. ``records``, ``record_bytes``: of
    the slots that the group has of the move, staged or tracked.
    """

    source: str
    target: str
    seq: int
    cursor: bytes
    records: int
    record_bytes: int


class ExportPage(Answer, frozen=True, tag=4):
    """A part of what is to be copied of a move. ``chunk``: for ImportChunk.

    ``records``, ``record_bytes``: left, estimated. ``cursor``: where the next page begins. ``done``: nothing was left.
    """

    cursor: bytes
    chunk: bytes
    records: int
    record_bytes: int
    done: bool

    def size(self) -> int:
        return len(self.chunk)


class MoveSummary(Answer, frozen=True, tag=5):
    """Of the frozen slots of a move: how many ``records``, and the encoded ``summary`` for ImportFinal."""

    records: int
    summary: bytes

    def size(self) -> int:
        return len(self.summary)


class CopyReport(Answer, frozen=True, tag=7):
    """What was copied of a move. ``seq``, ``cursor``: of the last chunk imported. ``copied``: bytes, this time.

    ``more``: much is left. ``records``: of all the slots, once they are complete, else 0.
    """

    seq: int
    cursor: bytes
    copied: int
    more: bool
    records: int

    def size(self) -> int:
        return len(self.cursor)


class MembersReport(Answer, frozen=True, tag=6):
    """The voters of a group as of its commit ``index``, the nodes in ``contact`` with its ``leader``."""

    index: int
    voters: tuple[int, ...]
    contact: tuple[int, ...]
    leader: int


class UsersReport(Answer, frozen=True, tag=9):
    """The users and roles, encoded: what :func:`raftkv.store.users.decode` reads. ``users`` is empty if the revision is
    the one that was told."""

    revision: int
    users: bytes

    def size(self) -> int:
        return len(self.users)


class MapReport(Answer, frozen=True, tag=10):
    """The shard map in effect, encoded; empty if it is the one that was asked about."""

    map: bytes

    def size(self) -> int:
        return len(self.map)


class TransactionAnswer(Answer, frozen=True, tag=20):
    """``succeeded``: the checks held. ``results``: of the list that took effect, a step each: (version of the record
    written, read or removed, 0 = absent; value read or counted, None = none; milliseconds left of a record read, -1 =
    for ever). ``number``: the slot's counter after it."""

    succeeded: bool
    results: tuple[tuple[int, bytes | None, int], ...]
    number: int

    def size(self) -> int:
        size = 16 * len(self.results)
        for _, value, _ in self.results:
            if value is not None:
                size += len(value)
        return size


class CursorAnswer(Answer, frozen=True, tag=21):
    """``numbers``: the mutations so far of each of the ``slots`` that were served when it was read, ascending.

    ``slots``: a bit for each, as in the question.
    """

    slots: bytes
    numbers: tuple[_Large, ...]

    def size(self) -> int:
        return len(self.slots) + 8 * len(self.numbers)


Report = (
    ScanPage
    | ClusterReport
    | MoveReport
    | ExportPage
    | MoveSummary
    | MembersReport
    | CopyReport
    | MapReport
    | UsersReport
    | TransactionAnswer
    | CursorAnswer
)


class Result(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Outcome of one command. Each field means one thing, whatever the command.

    ``version``: of the record written or read, 0 = absent (of a Delete: of the record removed, 0 = there was none; of
    CONDITION_FAILED: of the record that did not match).
    ``value``: of the record read, or of a counter after its increment. ``ttl``: milliseconds that it has left, -1 = for
    ever.
    ``hint``: node believed to lead the group, 0 = none. ``detail``: for people, of failures.
    ``retry_ms``: of OVERLOADED, until it is worth asking again, -1 = not known, 0 = ask at once for less.
    ``new_id_ms``: of SESSION_EXPIRED, when to draw the next client id, in ms of Unix time, 0 = not told.
    ``number``: id that a change of the cluster gave, of the last chunk imported, or the length of what was appended to.
    ``answer``: to a question, or of a transaction.
    """

    code: _Small
    version: _Large = 0
    value: bytes | None = None
    ttl: _LargeOrNone = -1
    hint: _Small = 0
    detail: Annotated[str, Meta(max_length=64 * 1024)] = ""
    retry_ms: _LargeOrNone = -1
    new_id_ms: _Large = 0
    number: _Large = 0
    answer: Report | None = None

    def size(self) -> int:
        """Bytes of its payload."""
        size = len(self.detail) + (0 if self.value is None else len(self.value))
        return size if self.answer is None else size + self.answer.size()


DONE: Final = Result(Code.OK)
MALFORMED: Final = Result(Code.INVALID_ARGUMENT, detail="malformed command")
TOO_LARGE: Final = Result(Code.TOO_LARGE, detail="key, value or expected value too large")
