"""Answers to reads of other nodes, no more of them than those can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from raftkv.errors import Code
from raftkv.limits import MAX_FORWARDED_ANSWER_BYTES, MAX_UNSENT_ANSWER_BYTES
from raftkv.store.operations import Kind, Op, Result

_AGAIN: Final = Result(Code.OVERLOADED, ttl=0, detail="too many large answers at once")


def bounded_answers(
    ops: Sequence[Op], reply: Callable[[int, Result], None], unsent: Callable[[], int]
) -> Callable[[int, Result], None]:
    """``reply`` for ``ops`` of one message, with values up to MAX_FORWARDED_ANSWER_BYTES, the first of any size.

    Further GETs, and all while more than MAX_UNSENT_ANSWER_BYTES wait to leave (``unsent``), get OVERLOADED with
    ``ttl`` 0: the node that took them from its client asks again.
    """
    room = MAX_FORWARDED_ANSWER_BYTES

    def answer(index: int, result: Result) -> None:
        nonlocal room
        if result.value is not None and ops[index].kind == Kind.GET:
            size = len(result.value)
            if (size > room and room < MAX_FORWARDED_ANSWER_BYTES) or unsent() > MAX_UNSENT_ANSWER_BYTES:
                reply(index, _AGAIN)
                return
            room -= size
        reply(index, result)

    return answer
