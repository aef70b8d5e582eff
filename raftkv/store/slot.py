"""One slot of a data group: its records, its sessions and the copy-on-write that keeps snapshots still."""

from __future__ import annotations

from bisect import bisect_right
from enum import IntEnum
from typing import NamedTuple

from raftkv.store.sessions import Session

Record = tuple[bytes, int, int]
"""(value, version, expires): ``expires`` is group time in ms, 0 = never."""


class SlotState(IntEnum):
    """What a group may do with a slot; a slot that is in no state is not the group's. Numbers are part of snapshots."""

    OWNED = 1
    FROZEN = 2
    IMPORTING = 3


class SlotImage(NamedTuple):
    """A slot as it was when a snapshot was taken."""

    slot: Slot
    number: int
    state: int
    counter: int
    floor: bytes
    records: dict[bytes, Record]
    sessions: dict[bytes, Session]

    def release(self) -> None:
        """End the copy-on-write of this image. The image must not be read any more."""
        # A slot that was written to meanwhile has left these dicts to the image.
        if self.slot.records is self.records:
            self.slot.pins -= 1


class Slot:
    """Mutable state of a slot.

    ``counter``: mutations so far. ``floor``: largest client id whose session was removed. ``bytes``: keys and values.
    ``pins``: images that share ``records`` and ``sessions``; while there are any, call :meth:`detach` before changing
    either. ``order``: cache of the sorted keys; whoever adds or removes a key sets it to None.
    """

    __slots__ = ("bytes", "counter", "floor", "number", "order", "pins", "records", "sessions", "state")

    def __init__(self, number: int, state: SlotState = SlotState.OWNED) -> None:
        self.number = number
        self.state = state
        self.counter = 0
        self.floor = b""
        self.records: dict[bytes, Record] = {}
        self.sessions: dict[bytes, Session] = {}
        self.bytes = 0
        self.pins = 0
        self.order: list[bytes] | None = None

    def image(self) -> SlotImage:
        """Freeze the slot as it is now, until the image is released."""
        self.pins += 1
        return SlotImage(self, self.number, int(self.state), self.counter, self.floor, self.records, self.sessions)

    def detach(self) -> None:
        """Leave the present dicts to the images that share them and go on with copies."""
        self.records = dict(self.records)
        self.sessions = {client: session.copy() for client, session in self.sessions.items()}
        self.pins = 0

    def keys_after(self, key: bytes) -> list[bytes]:
        """Keys greater than ``key``, ascending."""
        order = self.order
        if order is None:
            order = self.order = sorted(self.records)
        return order[bisect_right(order, key) :] if key else order
