"""A dial that cannot be made is logged once and tried again; it never ends the node, whatever it raises."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from raftkv.addresses import BadAddress
from tests.peer_world import World, run


class Failing:
    """Takes the place of the network's ``connect``, and fails while it has an error to raise."""

    def __init__(self, world: World, make: Callable[[], Exception]) -> None:
        self.make: Callable[[], Exception] | None = make
        self._connect = world.network.connect
        world.network.connect = self.connect  # type: ignore[method-assign]

    async def connect(self, source: str, address: str, factory: Callable[[], asyncio.Protocol]) -> Any:
        if self.make is not None:
            raise self.make()
        return await self._connect(source, address, factory)


ERRORS = [
    UnicodeError("encoding with 'idna' codec failed (UnicodeError: label empty or too long)"),
    BadAddress("address 'kv-4..prod:7549' is not of the form host:port"),
    ValueError("embedded null byte"),
    OverflowError("bind(): port must be 0-65535."),
    OSError(101, "Network is unreachable"),
    socket.gaierror(-2, "Name or service not known"),
    TimeoutError(),
    RuntimeError("the loop says no"),
    TypeError("getaddrinfo() argument 1 must be string or None"),
    ExceptionGroup("all addresses", [OSError(111, "Connection refused")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_dial_that_cannot_be_made_is_logged_once_and_tried_again(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World) -> None:
        failing = Failing(world, lambda: error)
        one = await world.node(1, [2])
        await world.clock.advance(20)
        assert len(one.dials) > 20
        assert one.crashes == []
        lines = [record.getMessage() for record in caplog.records if "link to node 2" in record.getMessage()]
        assert len(lines) == 1
        assert "cannot connect to n2:1" in lines[0]

        failing.make = None
        two = await world.node(2, [1])
        await world.clock.advance(2)
        assert one.links.up(2)
        assert two.links.up(1)

    run(scenario)


def test_another_address_is_told_of_anew(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        Failing(world, lambda: ValueError("no"))
        one = await world.node(1, [2])
        await world.clock.advance(5)
        one.links.set_dial(2, "n3:1")
        await world.clock.advance(5)
        assert [name for name in ("n2:1", "n3:1") if caplog.text.count(f"cannot connect to {name}") == 1] == [
            "n2:1",
            "n3:1",
        ]

    run(scenario)


def test_an_error_that_reads_differently_each_time_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        one = await world.node(1, [])
        Failing(world, lambda: ValueError(f"attempt {len(one.dials)}"))
        one.links.add_peer(2, "n2:1")
        await world.clock.advance(60)
        assert len(one.dials) > 60
        assert caplog.text.count("cannot connect to n2:1") == 8

    run(scenario)


def test_a_link_that_was_up_is_told_of_again(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: World) -> None:
        failing = Failing(world, lambda: UnicodeError("label empty or too long"))
        one, two = await world.node(1, [2]), await world.node(2, [])
        await world.clock.advance(2)
        make, failing.make = failing.make, None
        await world.clock.advance(2)
        assert one.links.up(2)
        failing.make = make
        world.network.reset("n1", "n2")
        await world.clock.advance(5)
        assert caplog.text.count("label empty or too long") == 2
        assert two.crashes == one.crashes == []

    run(scenario)


def test_where_nobody_answers_is_told_until_somebody_does_or_another_address_is_dialled() -> None:
    async def scenario(world: World) -> None:
        one = await world.node(1, [2])
        await world.clock.advance(1)
        assert (one.links.missed(2), one.links.dialled(2)) == (True, "n2:1")
        await world.node(3, [])
        one.links.set_dial(2, "n3:1")
        assert (one.links.missed(2), one.links.dialled(2)) == (False, "n3:1")
        await world.clock.advance(1)
        assert one.links.missed(2), "who answers there is another node"
        two = await world.node(2, [1])
        one.links.set_dial(2, "n2:1")
        await world.clock.advance(1)
        assert one.links.up(2)
        assert not one.links.missed(2)
        world.network.reset("n1", "n2")
        await world.clock.advance(0.01)
        assert not one.links.missed(2), "a connection that was lost is no attempt in vain"
        await world.clock.advance(1)
        assert one.links.up(2)
        await two.links.close()
        await world.clock.advance(1)
        assert one.links.missed(2)
        assert not one.links.missed(9)

    run(scenario)
