"""Names to IP addresses, without one that nobody resolves holding up the others."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


class Lookups:
    """Each name is looked up in a thread of its own, once at a time.

    The threads of a loop are few: they would all wait for names that a resolver cannot answer.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Future[list[str] | Exception]] = {}

    async def addresses(self, name: str) -> list[str]:
        """The IP addresses of ``name``. If the caller is cancelled, the next one gets the same lookup's answer.

        Raises OSError, or whatever else the resolver raises.
        """
        under_way = self._under_way.get(name)
        if under_way is None:
            loop = asyncio.get_running_loop()
            under_way = self._under_way[name] = loop.create_future()
            under_way.add_done_callback(lambda _: self._under_way.pop(name))
            threading.Thread(target=_resolve, args=(name, loop, under_way), name=f"look up {name}", daemon=True).start()
        found = await asyncio.shield(under_way)
        if isinstance(found, Exception):
            raise found
        return found


def _resolve(name: str, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[list[str] | Exception]) -> None:
    found: list[str] | Exception
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except Exception as error:  # noqa: BLE001 whoever asks gets it
        found = error
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(answer.set_result, found)
