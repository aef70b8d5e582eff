"""The families of commands."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from msgspec import Struct

from raftkv import limits
from raftkv.commands.bounds import CLIENT_BYTES, Client, Count, Key, Mode, ReadMode, SlotNumber
from raftkv.commands.results import MALFORMED, TOO_LARGE, Result
from raftkv.commands.rights import Right

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore
    from raftkv.store.records import Store
    from raftkv.store.slot import Slot


class Sender(IntEnum):
    """On whose behalf a command is sent. Each may ask for what those before it may."""

    CLIENT = 0
    OPERATOR = 1
    NODE = 2


class Command(Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    """Something that is asked of a group. Encoded, it is an array: its ``tag``, then its fields.

    A class without a tag is a family. ``tag`` is part of the log's format and never reused. A command of no further
    family is proposed by the group's leader only.
    """

    number: ClassVar[int]
    """Its tag."""
    name: ClassVar[str]
    """For counters and messages."""
    reads: ClassVar[bool] = False
    """It changes nothing, and never stands in the log."""
    grows: ClassVar[bool] = False
    """It may bring new data: refused while there is no space for any."""

    @property
    def only_key(self) -> bytes | None:
        """The key that it is about, if it is about one and no other."""
        return None

    @property
    def stale(self) -> bool:
        """Whether any replica may answer."""
        return False

    @property
    def sender(self) -> Sender:
        """Who may ask for it."""
        return Sender.NODE

    @property
    def needs(self) -> Right | None:
        """The rights that a user must have who asks for it; None: who asks need not be a user."""
        return Right.ADMIN

    def size(self) -> int:
        """Bytes of its payload."""
        return 0

    def refusal(self) -> Result | None:
        """Why nobody takes it, whatever the state: it breaks bounds that its type does not tell."""
        return None

    def apply(self, store: Store) -> Result:
        """Take effect in a data group. Follows from the log alone, never raises."""
        return MALFORMED

    def apply_meta(self, meta: MetaStore) -> Result:
        """Take effect in the meta group, likewise."""
        return MALFORMED


class SlotCommand(Command, frozen=True):
    """A client's command, about the records of a slot: the group that owns it executes it.

    One with an RPC of its own names it (``rpc``) and has :meth:`from_request` and :meth:`respond`; ``answers``: codes
    beside OK that are answers there and no failures.
    """

    rpc: ClassVar[str] = ""
    answers: ClassVar[tuple[int, ...]] = ()

    slot: SlotNumber

    @property
    def sender(self) -> Sender:
        return Sender.CLIENT

    @classmethod
    def from_request(cls, request: Any, slots: int) -> Self:
        """The command of its RPC's request. Raises InvalidArgument or TooLarge."""
        raise NotImplementedError

    def respond(self, result: Result, response: Any) -> None:
        """Fill the empty response of its RPC."""
        raise NotImplementedError


class Read(SlotCommand, frozen=True, kw_only=True):
    """It reads records."""

    reads: ClassVar[bool] = True

    mode: ReadMode = 0

    @property
    def needs(self) -> Right | None:
        return Right.READ

    @property
    def stale(self) -> bool:
        return self.mode == Mode.STALE

    def read(self, store: Store) -> Result:
        """The answer, of a state that is known to be recent enough."""
        raise NotImplementedError


class _Keyed(SlotCommand, frozen=True):
    key: Key

    @property
    def only_key(self) -> bytes | None:
        return self.key


class Write(_Keyed, frozen=True, kw_only=True):
    """It changes a record.

    Those of one client are executed once: ``client``, ``seq``, ``first``: request id (16 bytes, number, first number
    that the client still waits for). ``client`` empty: the node names it.
    """

    client: Client = b""
    seq: Count = 0
    first: Count = 0

    @property
    def needs(self) -> Right | None:
        return Right.WRITE

    def size(self) -> int:
        return len(self.key)

    def refusal(self) -> Result | None:
        if len(self.key) > limits.MAX_KEY_BYTES:
            return TOO_LARGE
        if self.client and (len(self.client) != CLIENT_BYTES or not 1 <= self.first <= self.seq):
            return MALFORMED
        return None

    def apply(self, store: Store) -> Result:
        return store.write(self)

    def execute(self, store: Store, slot: Slot) -> int:
        """Execute it, and return its outcome, as of :mod:`raftkv.store.sessions`."""
        raise NotImplementedError


class GroupCommand(Command, frozen=True):
    """A command about a group as a whole: its leader executes it. Nodes ask for it, operators for some."""

    group: Count

    def refusal(self) -> Result | None:
        return TOO_LARGE if self.size() > limits.MAX_BATCH_BYTES else None


class GroupRead(GroupCommand, frozen=True):
    """It asks the group's leader."""

    reads: ClassVar[bool] = True
