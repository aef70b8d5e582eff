"""The one taxonomy of outcomes: codes on the wire, exceptions in Python, and what each of them promises.

Every code is either *definite* (the operation surely did not take effect) or *indefinite* (it may have). Server,
client, history recorder and checker read the same table, :data:`OUTCOMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final


class Code(IntEnum):
    """Outcome of one operation as it travels between nodes and to clients."""

    OK = 0
    CONDITION_FAILED = 1
    INVALID_ARGUMENT = 2
    TOO_LARGE = 3
    NOT_LEADER = 4
    SLOT_MOVING = 5
    MOVED = 6
    UNAVAILABLE = 7
    OVERLOADED = 8
    NO_SPACE = 9
    UNKNOWN = 10
    SESSION_EXPIRED = 11
    NOT_CAUGHT_UP = 12
    DEADLINE_EXCEEDED = 13
    WRONG_CLUSTER = 14
    INTERNAL = 15
    WRONG_VERSION = 16
    NOT_A_NUMBER = 17
    OUT_OF_RANGE = 18
    CROSS_SLOT = 19
    UNAUTHENTICATED = 20
    PERMISSION_DENIED = 21
    COMPACTED = 30
    SLOW_CONSUMER = 31


class RaftKVError(Exception):
    """Base of everything that raftkv raises. ``str()`` is the message.

    Pickles and copies keep type, message and attributes. Errors that mean the same as a built-in exception derive from
    it too: whatever ends because its time is up is a TimeoutError.
    """

    code: Code = Code.INTERNAL

    # OSError, a base of some, would make "[Errno ...]" of two arguments.
    __str__ = Exception.__str__

    def __reduce__(self) -> tuple[object, ...]:
        # Not by another call of the class: ``args`` need not be what its constructor takes.
        return _bare, (type(self),), {**self.__dict__, "args": self.args}


def _bare(kind: type[RaftKVError]) -> RaftKVError:
    return kind.__new__(kind)


class NotApplied(RaftKVError):
    """The operation surely did not take effect."""

    code = Code.UNAVAILABLE


class OutcomeUnknown(RaftKVError):
    """The operation may or may not have taken effect; a later read tells."""

    code = Code.UNKNOWN


class InvalidArgument(NotApplied, ValueError):
    """The request can never succeed as it is: an empty key, a negative TTL, an unknown consistency."""

    code = Code.INVALID_ARGUMENT


class TooLarge(InvalidArgument):
    """A key, a value or a batch is over its limit (see :mod:`raftkv.limits`)."""

    code = Code.TOO_LARGE


class CrossSlot(InvalidArgument):
    """The keys of a transaction belong to several slots; the message names keys and slots. Nothing was sent."""

    code = Code.CROSS_SLOT


class NotANumber(NotApplied, ValueError):
    """What is to be incremented is not a signed 64-bit integer as decimal text; nothing was changed."""

    code = Code.NOT_A_NUMBER


class CounterOverflow(NotApplied, OverflowError):
    """The counter would leave the range of signed 64-bit integers; nothing was changed."""

    code = Code.OUT_OF_RANGE


class ConditionFailed(NotApplied):
    """The record of ``key`` is not the one asked for, or the cluster refuses a change as it is now.

    ``expected``: the version asked for, 0 (ABSENT) = no record; None: a value was asked for. ``version``: the record's
    version at that moment, 0 if there was none. ``key`` is None where no record is concerned.
    """

    code = Code.CONDITION_FAILED

    def __init__(
        self, message: str = "", version: int = 0, *, key: bytes | None = None, expected: int | None = None
    ) -> None:
        super().__init__(message)
        self.key = key
        self.expected = expected
        self.version = version


class BatchError(RaftKVError):
    """Some operations of a batch have failed; those of other keys took effect. None of them hangs together with others.

    ``results``: of each key in the order of the call: what the operation returned, or its error. ``errors``: key ->
    error of those that failed; each says whether its own operation surely had no effect.
    """

    code = Code.UNKNOWN

    def __init__(
        self, message: str = "", results: Sequence[Any] = (), errors: Mapping[bytes, RaftKVError] | None = None
    ) -> None:
        super().__init__(message)
        self.results = list(results)
        self.errors = dict(errors or {})


class _Lost(NotApplied):
    """A watch cannot go on without a gap. ``floors``: by slot, the number up to which events are kept no more.

    ``token``: goes on from where the watch was, with ``initial=True``, which reads these slots anew.
    """

    def __init__(self, message: str = "", *, token: str = "", floors: Mapping[int, int] | None = None) -> None:
        super().__init__(message)
        self.token = token
        self.floors = dict(floors or {})


class Compacted(_Lost):
    """The watch was away for so long that events after its token are kept no more."""

    code = Code.COMPACTED


class SlowConsumer(_Lost):
    """The watch was read so slowly that events which it had not got are kept no more."""

    code = Code.SLOW_CONSUMER


class CodecError(RaftKVError, ValueError):
    """The value of ``key`` is there and is not what the client's codec reads; ``data`` has its bytes.

    What was asked for was done: of a ``get_and_delete`` the record is gone, and ``data`` is what it held.
    """

    code = Code.OK

    def __init__(self, message: str = "", *, key: bytes = b"", data: bytes = b"") -> None:
        super().__init__(message)
        self.key = key
        self.data = data


class Unavailable(NotApplied, ConnectionError, TimeoutError):
    """No replica could serve the operation before the deadline, and none executed it.

    Either no node was reached, or none that can serve. A read that got no answer in time ends so too.
    """

    code = Code.UNAVAILABLE


class Overloaded(NotApplied, TimeoutError):
    """Until the deadline the nodes had more outstanding work than they accept."""

    code = Code.OVERLOADED


class NoSpace(NotApplied):
    """The node's disk is full: writes are refused, reads and deletes go on."""

    code = Code.NO_SPACE


class WrongCluster(NotApplied):
    """The endpoint belongs to another cluster than the one this client spoke to before."""

    code = Code.WRONG_CLUSTER


class WrongVersion(NotApplied):
    """The other side is of a version of raftkv that this one must not work with; both sides refuse it."""

    code = Code.WRONG_VERSION


class Unauthenticated(NotApplied):
    """The cluster serves its users only, and the client has not shown that it is one: it has no token, or an unknown
    one."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(NotApplied, PermissionError):
    """The user's roles do not allow it."""

    code = Code.PERMISSION_DENIED


class SessionExpired(OutcomeUnknown):
    """A retry came after its request's dedupe record had gone; whether an earlier attempt took effect is not known."""

    code = Code.SESSION_EXPIRED


class DeadlineExceeded(OutcomeUnknown, TimeoutError):
    """The time of a write ran out, and one of its attempts may have taken effect or may still do so."""

    code = Code.DEADLINE_EXCEEDED


class UsageError(NotApplied, RuntimeError):
    """The client cannot be used here: it is closed, belongs to another event loop, or was made before a fork."""

    code = Code.INVALID_ARGUMENT


class ConfigError(RaftKVError):
    """A configuration file or option is wrong; the message names it."""

    code = Code.INVALID_ARGUMENT


class ListenError(RaftKVError):
    """The address for clients cannot be listened on: it is in use or not this machine's; the message names it."""

    code = Code.INTERNAL


class StorageError(RaftKVError):
    """The data folder cannot be used; the message names file, offset and what to do."""

    code = Code.INTERNAL


class DataFolderInUse(StorageError):
    """Another process holds the data folder's lock."""


class CorruptData(StorageError):
    """Stored data is damaged or missing; what is damaged was left as it is. The message names file and offset."""

    def __init__(self, path: str, offset: int, problem: str) -> None:
        super().__init__(f"{path}: damaged at byte {offset}: {problem}")
        self.path = path
        self.offset = offset
        self.problem = problem


@dataclass(frozen=True, slots=True)
class CodeOutcome:
    """What a code promises: ``definite`` = surely not applied; ``retry`` = the same request may succeed later."""

    definite: bool
    retry: bool
    grpc_status: str
    error: type[RaftKVError]


OUTCOMES: Final[dict[Code, CodeOutcome]] = {
    Code.CONDITION_FAILED: CodeOutcome(True, False, "FAILED_PRECONDITION", ConditionFailed),
    Code.INVALID_ARGUMENT: CodeOutcome(True, False, "INVALID_ARGUMENT", InvalidArgument),
    Code.TOO_LARGE: CodeOutcome(True, False, "INVALID_ARGUMENT", TooLarge),
    Code.NOT_LEADER: CodeOutcome(True, True, "UNAVAILABLE", Unavailable),
    Code.SLOT_MOVING: CodeOutcome(True, True, "UNAVAILABLE", Unavailable),
    Code.MOVED: CodeOutcome(True, True, "UNAVAILABLE", Unavailable),
    Code.UNAVAILABLE: CodeOutcome(True, True, "UNAVAILABLE", Unavailable),
    Code.OVERLOADED: CodeOutcome(True, True, "RESOURCE_EXHAUSTED", Overloaded),
    Code.NO_SPACE: CodeOutcome(True, False, "RESOURCE_EXHAUSTED", NoSpace),
    Code.UNKNOWN: CodeOutcome(False, True, "UNAVAILABLE", OutcomeUnknown),
    Code.SESSION_EXPIRED: CodeOutcome(True, False, "ABORTED", SessionExpired),
    Code.NOT_CAUGHT_UP: CodeOutcome(True, True, "UNAVAILABLE", Unavailable),
    Code.DEADLINE_EXCEEDED: CodeOutcome(False, False, "DEADLINE_EXCEEDED", DeadlineExceeded),
    Code.WRONG_CLUSTER: CodeOutcome(True, False, "FAILED_PRECONDITION", WrongCluster),
    Code.INTERNAL: CodeOutcome(False, False, "INTERNAL", OutcomeUnknown),
    Code.WRONG_VERSION: CodeOutcome(True, False, "FAILED_PRECONDITION", WrongVersion),
    Code.NOT_A_NUMBER: CodeOutcome(True, False, "FAILED_PRECONDITION", NotANumber),
    Code.OUT_OF_RANGE: CodeOutcome(True, False, "OUT_OF_RANGE", CounterOverflow),
    Code.CROSS_SLOT: CodeOutcome(True, False, "INVALID_ARGUMENT", CrossSlot),
    Code.UNAUTHENTICATED: CodeOutcome(True, False, "UNAUTHENTICATED", Unauthenticated),
    Code.PERMISSION_DENIED: CodeOutcome(True, False, "PERMISSION_DENIED", PermissionDenied),
    Code.COMPACTED: CodeOutcome(True, False, "OUT_OF_RANGE", Compacted),
    Code.SLOW_CONSUMER: CodeOutcome(True, False, "RESOURCE_EXHAUSTED", SlowConsumer),
}

SETTLED: Final = frozenset({Code.OK, Code.CONDITION_FAILED, Code.NOT_A_NUMBER, Code.OUT_OF_RANGE, Code.TOO_LARGE})
"""These settle a request, whatever became of its other attempts: what an execution came to is recorded and told to
each of them, and what is too large is so in all of them."""

NO_USER: Final = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})
"""Refusals for what the user is, at whichever node."""
