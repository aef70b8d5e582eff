"""Planted faults of what makes a write take effect once, and a transaction whole."""

from __future__ import annotations

from raftkv.commands.base import Write
from raftkv.commands.results import Result
from raftkv.commands.transactions import IncrementStep, Transact
from raftkv.commands.updates import Increment
from raftkv.errors import Code
from raftkv.store.ageing import Ageing
from raftkv.store.records import Store
from raftkv.store.sessions import Kept, Session
from raftkv.store.slot import Slot


def keeps_nothing(ageing: Ageing, slot: Slot, client: bytes, session: Session, seq: int, kept: Kept) -> None:
    """Results that are more than a version are not recorded."""


def forgets_for_room(session: Session, seq: int) -> None:
    """A result that has to go is gone, and its request is as new."""
    _forget(session, seq)
    session.first = min(session.first, seq)
    if session.seq == seq:
        session.seq = 0
    elif session.more is not None:
        session.more.pop(seq, None)


_forget = Session.forget


def half_again(store: Store, command: Write) -> Result:
    """What a transaction counts last is counted again for each of its retries."""
    retried = isinstance(command, Transact) and _is_recorded(store, command)
    result = _write(store, command)
    if isinstance(command, Transact) and retried and result.code == Code.OK:
        counts = [step for step in command.steps if isinstance(step, IncrementStep)]
        for step in counts[-1:]:
            _write(store, Increment(command.slot, step.key, step.delta))
    return result


_write = Store.write


def _is_recorded(store: Store, command: Transact) -> bool:
    slot = store.slot(command.slot)
    session = None if slot is None else slot.sessions.get(command.client)
    return session is not None and session.first <= command.seq and session.find(command.seq) is not None
