"""Answers to other nodes, bounded by what the asking node can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from raftkv.commands.base import Command, Write
from raftkv.commands.results import Result
from raftkv.errors import Code
from raftkv.limits import MAX_FORWARDED_ANSWER_BYTES, MAX_UNSENT_ANSWER_BYTES
from raftkv.store.records import Store

_AGAIN: Final = Result(Code.OVERLOADED, retry_ms=0, detail="too many large answers at once")


def bounded_answers(
    ops: Sequence[Command], reply: Callable[[int, Result], None], unsent: Callable[[], int]
) -> Callable[[int, Result], None]:
    """``reply`` for ``ops`` of one message, with values up to MAX_FORWARDED_ANSWER_BYTES, the first of any size.

    Further reads, and all while more than MAX_UNSENT_ANSWER_BYTES wait to leave (``unsent``), get OVERLOADED with
    ``retry_ms`` 0: the node that took them from its client asks again.
    """
    room = MAX_FORWARDED_ANSWER_BYTES

    def answer(index: int, result: Result) -> None:
        nonlocal room
        if result.value is not None and ops[index].reads:
            size = len(result.value)
            if (size > room and room < MAX_FORWARDED_ANSWER_BYTES) or unsent() > MAX_UNSENT_ANSWER_BYTES:
                reply(index, _AGAIN)
                return
            room -= size
        reply(index, result)

    return answer


def put_off(ops: Sequence[Command], store_of: Callable[[Write], Store | None], unsent: int) -> dict[int, Result]:
    """The writes of one message that are not to be executed now, by their places, and what they get: OVERLOADED.

    The same bounds, of what their results would tell. What was executed must be told: another attempt may find that its
    record has gone.
    """
    found: dict[int, Result] = {}
    room = MAX_FORWARDED_ANSWER_BYTES
    for index, op in enumerate(ops):
        if not isinstance(op, Write) or not op.shows:
            continue
        store = store_of(op)
        size = 0 if store is None else op.shown_bytes(store)
        if (size > room and room < MAX_FORWARDED_ANSWER_BYTES) or (size and unsent > MAX_UNSENT_ANSWER_BYTES):
            found[index] = _AGAIN
        else:
            room -= size
    return found
