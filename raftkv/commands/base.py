"""The families of commands."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from msgspec import Struct

from raftkv import limits
from raftkv.commands.bounds import (
    CLIENT_BYTES,
    Client,
    Count,
    Key,
    Mode,
    ReadMode,
    SlotNumber,
    check_request_id,
)
from raftkv.commands.results import MALFORMED, TOO_LARGE, Result
from raftkv.commands.rights import DATA, Right
from shards.slots import slot_of

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore
    from raftkv.store.records import Store
    from raftkv.store.slot import Slot
    from raftkv.v1.kv_pb2 import Operation


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

    @property
    def grows(self) -> bool:
        """Whether it may bring new data: refused while there is no space for any."""
        return False

    @property
    def keys(self) -> tuple[bytes, ...] | None:
        """The keys that it is about, if they are known: of others it tells and changes nothing."""
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


class Write(SlotCommand, frozen=True, kw_only=True):
    """It changes records.

    Those of one client are executed once: ``client``, ``seq``, ``first``: request id (16 bytes, number, first number
    that the client still waits for). ``client`` empty: the node names it.

    ``tells``: its result is more than a version. ``shows``: that may be much, as it has values of records.
    """

    tells: ClassVar[bool] = False
    shows: ClassVar[bool] = False

    client: Client = b""
    seq: Count = 0
    first: Count = 0

    @property
    def needs(self) -> Right | None:
        # What tells more than a version tells of what was there.
        return DATA if self.tells else Right.WRITE

    @classmethod
    def of(cls, asked: Any, slots: int, client: bytes, seq: int, first: int) -> Self:
        """The command that a Pipeline's message or an RPC's request asks for, under this request id.

        Raises InvalidArgument or TooLarge.
        """
        raise NotImplementedError

    @classmethod
    def decode(cls, message: Operation, client: bytes, first: int, slots: int) -> Self:
        """The command of a Pipeline's message. Raises InvalidArgument or TooLarge."""
        if not message.sequence:
            return cls.of(message, slots, b"", 0, 0)
        check_request_id(client, message.sequence, first)
        return cls.of(message, slots, client, message.sequence, first)

    @classmethod
    def from_request(cls, request: Any, slots: int) -> Self:
        if not request.HasField("request_id"):
            return cls.of(request, slots, b"", 0, 0)
        name = request.request_id
        check_request_id(name.client_id, name.sequence, name.first_incomplete)
        return cls.of(request, slots, name.client_id, name.sequence, name.first_incomplete)

    def fill(self, message: Operation) -> None:
        """Write into a Pipeline's message what :meth:`decode` reads there."""
        message.sequence = self.seq

    def refusal(self) -> Result | None:
        if self.client and (len(self.client) != CLIENT_BYTES or not 1 <= self.first <= self.seq):
            return MALFORMED
        return None

    def shown_bytes(self, store: Store) -> int:
        """About how many bytes of values its result would have, as the store is now."""
        return 0

    def apply(self, store: Store) -> Result:
        return store.write(self)

    def execute(self, store: Store, slot: Slot) -> int | Result:
        """Execute it. Returns its outcome if that is a version, or a condition that failed, as of
        :mod:`raftkv.store.sessions`; else its result."""
        raise NotImplementedError


class KeyWrite(Write, frozen=True):
    """It changes the record of one key."""

    key: Key

    @property
    def keys(self) -> tuple[bytes, ...] | None:
        return (self.key,)

    def placed(self, slots: int) -> bool:
        """Whether its slot is that of its key."""
        return self.slot == slot_of(self.key, slots)

    def fill(self, message: Operation) -> None:
        message.key, message.sequence = self.key, self.seq

    def size(self) -> int:
        return len(self.key)

    def refusal(self) -> Result | None:
        # Not by super(), which takes longer than all of it.
        return TOO_LARGE if len(self.key) > limits.MAX_KEY_BYTES else Write.refusal(self)


class GroupCommand(Command, frozen=True):
    """A command about a group as a whole: its leader executes it. Nodes ask for it, operators for some."""

    group: Count

    def refusal(self) -> Result | None:
        return TOO_LARGE if self.size() > limits.MAX_BATCH_BYTES else None


class GroupRead(GroupCommand, frozen=True):
    """It asks the group's leader."""

    reads: ClassVar[bool] = True
