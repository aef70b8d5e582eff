"""How far a watch is, and the tokens that say so. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Annotated, Final, Self

from msgspec import Meta, MsgspecError
from msgspec.msgpack import Decoder, Encoder

from raftkv.commands.bounds import MAX_COUNT
from raftkv.errors import InvalidArgument
from shards.slots import MAX_SLOTS, is_slot_count

_FORMAT: Final = 1
_PAGE: Final = 32
_NOTHING: Final = (None,) * _PAGE

_Number = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Slot = Annotated[int, Meta(ge=0, lt=MAX_SLOTS)]
_encode: Final = Encoder().encode
_decode: Final = Decoder(tuple[int, str, int, list[tuple[_Slot, list[_Number]]]]).decode


class Cursor:
    """By slot, the number of the last event that was handed out; None: none was, and nothing says where to begin.

    Never changes: each event has one, and what is equal is shared.
    """

    __slots__ = ("_pages", "cluster_id", "slots")

    def __init__(self, cluster_id: str, slots: int, pages: tuple[tuple[int | None, ...], ...] = ()) -> None:
        self.cluster_id = cluster_id
        self.slots = slots
        self._pages = pages or (_NOTHING,) * (slots // _PAGE)

    def number(self, slot: int) -> int | None:
        return self._pages[slot // _PAGE][slot % _PAGE]

    def at(self, slot: int, number: int | None) -> Cursor:
        """The same, with another number of one slot."""
        index, place = divmod(slot, _PAGE)
        pages = self._pages
        page = pages[index]
        page = (*page[:place], number, *page[place + 1 :])
        return Cursor(self.cluster_id, self.slots, (*pages[:index], page, *pages[index + 1 :]))

    def moved(self, numbers: Mapping[int, int]) -> Cursor:
        """The same, with other numbers of these slots."""
        pages: dict[int, list[int | None]] = {}
        for slot, number in numbers.items():
            index, place = divmod(slot, _PAGE)
            page = pages.get(index)
            if page is None:
                page = pages[index] = list(self._pages[index])
            page[place] = number
        merged = list(self._pages)
        for index, page in pages.items():
            merged[index] = tuple(page)
        return Cursor(self.cluster_id, self.slots, tuple(merged))

    def reaches(self, numbers: Mapping[int, int]) -> bool:
        """Whether it is that far, in all these slots."""
        return all((at := self.number(slot)) is not None and at >= number for slot, number in numbers.items())

    def only(self, slots: Iterable[int]) -> Cursor:
        """What it says of these slots."""
        found = Cursor(self.cluster_id, self.slots)
        for slot in slots:
            number = self.number(slot)
            if number is not None:
                found = found.at(slot, number)
        return found

    def token(self) -> str:
        """As text, for :meth:`of`: letters, digits, ``-`` and ``_``."""
        runs: list[tuple[int, list[int]]] = []
        open_ = False
        for slot in range(self.slots):
            number = self.number(slot)
            if number is not None:
                if not open_:
                    runs.append((slot, []))
                runs[-1][1].append(number)
            open_ = number is not None
        data = _encode((_FORMAT, self.cluster_id, self.slots, runs))
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    @classmethod
    def of(cls, token: str) -> Self:
        """Raises InvalidArgument for what is no token."""
        try:
            data = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
            number, cluster_id, slots, runs = _decode(data)
        except (AttributeError, ValueError, binascii.Error, MsgspecError):
            raise InvalidArgument("start is not a token of a watch") from None
        if number != _FORMAT:
            raise InvalidArgument("start is a token of another version of raftkv")
        if not is_slot_count(slots) or any(first + len(numbers) > slots for first, numbers in runs):
            raise InvalidArgument("start is not a token of a watch")
        pages: list[list[int | None]] = [list(_NOTHING) for _ in range(slots // _PAGE)]
        for first, numbers in runs:
            for slot, one in enumerate(numbers, first):
                pages[slot // _PAGE][slot % _PAGE] = one
        return cls(cluster_id, slots, tuple(tuple(page) for page in pages))


class Trail:
    """How a message moves a cursor on from ``start``, one slot after the other. Its events share it: where the watch is
    at one follows from its slot, and is worked out if somebody asks."""

    __slots__ = ("_moves", "start")

    def __init__(self, start: Cursor) -> None:
        self.start = start
        self._moves: dict[int, int] = {}

    def move(self, slot: int, number: int) -> None:
        """This slot comes next, up to the number."""
        self._moves[slot] = number

    def at(self, slot: int, number: int) -> Cursor:
        """The cursor at this number of a slot, as the message tells it."""
        before = takewhile(lambda move: move[0] != slot, self._moves.items())
        return self.start.moved({**dict(before), slot: number})

    def end(self) -> Cursor:
        """The cursor behind the message."""
        return self.start.moved(self._moves)
