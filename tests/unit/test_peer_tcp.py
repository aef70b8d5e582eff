"""Dials of names: a resolver that is slow, gives up or changes its mind stops no other dial."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from raftkv.addresses import parse_address
from raftkv.peer.network import TcpListener, TcpNetwork

DEAD = [f"dead-{number}.example:1" for number in range(40)]


class Resolver:
    """Knows ``known``: name -> IP addresses; names that begin with "dead" get no answer until ``release``."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.release = threading.Event()

    def getaddrinfo(self, host: str, port: int | None, **_: object) -> list[tuple[object, ...]]:
        self.asked[host] += 1
        if host.startswith("dead"):
            self.release.wait(60)
        if host not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port or 0)) for ip in self.known[host]]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.release.set()


async def listening() -> tuple[TcpListener, int]:
    listener = await TcpNetwork().listen("127.0.0.1:0", asyncio.Protocol)
    assert isinstance(listener, TcpListener)
    return listener, parse_address(listener.address).port


def test_names_without_an_answer_hold_up_no_other_and_are_asked_for_once(resolver: Resolver) -> None:
    async def main() -> None:
        network = TcpNetwork()
        listener, port = await listening()
        resolver.known["live.example"] = ["127.0.0.1"]
        dials = [asyncio.create_task(network.dial(name, asyncio.Protocol)) for name in DEAD]
        await asyncio.sleep(0)
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        again = [asyncio.create_task(network.dial(name, asyncio.Protocol)) for name in DEAD]
        (await network.dial(f"live.example:{port}", asyncio.Protocol)).close()
        resolver.release.set()
        for problem in await asyncio.gather(*again, return_exceptions=True):
            assert isinstance(problem, socket.gaierror)
        # The second dial of each had the answer that the first one did not wait for.
        assert set(resolver.asked.values()) == {1}
        listener.close()

    asyncio.run(main())


def test_a_name_is_looked_up_for_every_dial(resolver: Resolver) -> None:
    async def main() -> None:
        network = TcpNetwork()
        listener, port = await listening()
        with pytest.raises(socket.gaierror):
            await network.dial(f"late.example:{port}", asyncio.Protocol)
        resolver.known["late.example"] = ["127.0.0.1"]
        (await network.dial(f"late.example:{port}", asyncio.Protocol)).close()
        assert resolver.asked["late.example"] == 2
        listener.close()

    asyncio.run(main())


def test_all_addresses_of_a_name_are_tried(resolver: Resolver) -> None:
    async def main() -> None:
        network = TcpNetwork()
        listener, port = await listening()
        resolver.known["two.example"] = ["127.0.0.2", "127.0.0.1"]
        (await network.dial(f"two.example:{port}", asyncio.Protocol)).close()
        listener.close()
        with pytest.raises(OSError, match="refused|Connect call failed"):
            await network.dial(f"two.example:{port}", asyncio.Protocol)

    asyncio.run(main())


def test_what_is_no_name_is_not_looked_up(resolver: Resolver) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=r".") as caught:
            await TcpNetwork().dial("127.0.0.1:1", asyncio.Protocol)
        assert not isinstance(caught.value, socket.gaierror)
        assert not resolver.asked
        assert [parse_address(text).is_name for text in ("h:1", "1a.b:1", "[::1]:1", "1.2.3.4:1")] == [
            True,
            True,
            False,
            False,
        ]

    asyncio.run(main())


def test_a_loop_that_ends_before_the_answer_is_left_alone(resolver: Resolver) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await TcpNetwork().dial(DEAD[0], asyncio.Protocol)

    asyncio.run(main())
    (lookup,) = [thread for thread in threading.enumerate() if thread.name.startswith("look up dead")]
    resolver.release.set()
    lookup.join(60)
    assert not lookup.is_alive()
