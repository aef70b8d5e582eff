"""Guarantee: every call of the clients has an example that is true, for the asyncio client and for the other one."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest

import raftkv
import raftkv.testing
from raftkv import (
    AsyncClient,
    AsyncElection,
    AsyncLease,
    AsyncLock,
    AsyncTransaction,
    Client,
    Election,
    Lease,
    Lock,
    Transaction,
    codecs,
)
from raftkv.commands.group import Genesis
from raftkv.store.records import Store
from raftkv.testing import FakeAsyncClient, FakeCluster
from tests.admin_world import World, world_of


def methods(kind: type) -> dict[str, Any]:
    found = inspect.getmembers(kind, inspect.isroutine)
    return {f"{kind.__name__}.{name}": call for name, call in found if not name.startswith("_")}


CALLS: dict[str, Any] = {
    **methods(AsyncClient),
    **methods(AsyncTransaction),
    **methods(AsyncLease),
    **methods(AsyncLock),
    **methods(AsyncElection),
    **methods(FakeCluster),
    **{
        one.__name__: one
        for one in (
            AsyncClient,
            AsyncLease,
            AsyncLock,
            AsyncElection,
            FakeAsyncClient,
            FakeCluster,
            raftkv.RetryPolicy,
            raftkv.slot_of,
            codecs.Codec,
            codecs.json_of,
            codecs.msgpack_of,
        )
    },
}
WITHOUT = {
    "AsyncClient.disown",
    "AsyncLease.put_bytes",
    "AsyncLease.watch_over",
    "AsyncLock.queue",
    "AsyncElection.queue",
    "AsyncTransaction.take",
    "AsyncTransaction.result",
    "FakeCluster.endpoint",
    "FakeCluster.execute",
    "FakeCluster.view",
    "FakeCluster.status",
    "FakeCluster.watch",
    "FakeCluster.told",
    "FakeCluster.unwatch",
}
"""No calls of programs: the clients call these."""
_PARSER = doctest.DocTestParser()
_CHECKER = doctest.OutputChecker()


def examples(name: str) -> list[doctest.Example]:
    return _PARSER.get_examples(inspect.getdoc(CALLS[name]) or "")


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with world_of(nodes=1, groups=2) as world:
        yield world


@pytest.fixture
def world(running: World) -> World:
    for group, store in list(running.stores.items()):
        running.stores[group] = Store()
        running.stores[group].apply(store.time, [Genesis(tuple(running.map.slots_of(group)))])
    return running


class _Printed(StringIO):
    def __init__(self, shown: list[str]) -> None:
        super().__init__()
        self._shown = shown

    def write(self, text: str) -> int:
        self._shown.append(text)
        return len(text)


async def run(source: str, names: dict[str, Any], shown: list[str]) -> None:
    """As an interpreter of asyncio does it; ``shown``: what it shows."""

    def show(value: object) -> None:
        if value is not None:
            shown.append(f"{value!r}\n")

    usual, sys.displayhook = sys.displayhook, show
    try:
        with redirect_stdout(_Printed(shown)):
            done = eval(compile(source, "example", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
            if inspect.iscoroutine(done):
                await done
    except Exception as error:  # noqa: BLE001 - to be compared
        shown.append(f"{type(error).__module__}.{type(error).__qualname__}: {error}\n")
    finally:
        sys.displayhook = usual


async def check(name: str, names: dict[str, Any], *, sync: bool = False) -> None:
    for example in examples(name):
        source = example.source
        if sync:
            source = re.sub(r"\b(await|async) |\basync_|\ba(?=next\()", "", source).replace("AsyncClient", "Client")
        shown: list[str] = []
        await run(source, names, shown)
        wanted = example.exc_msg or example.want
        assert _CHECKER.check_output(wanted, "".join(shown), doctest.ELLIPSIS), f"{source}is {shown}, not {wanted}"


def test_every_call_has_an_example() -> None:
    assert {name for name in CALLS if not examples(name)} == WITHOUT


@pytest.mark.parametrize("name", sorted(set(CALLS) - WITHOUT))
def test_the_examples_are_true(name: str, world: World) -> None:
    async def ask() -> None:
        async with AsyncClient(world.endpoints, timeout=60.0) as kv:
            await check(name, {"kv": kv, "raftkv": raftkv, "endpoints": world.endpoints})

    asyncio.run(ask())


@pytest.mark.parametrize("name", sorted(set(CALLS) - WITHOUT))
def test_the_examples_are_true_without_await(name: str, world: World) -> None:
    with Client(world.endpoints, timeout=60.0) as kv:
        asyncio.run(check(name, {"kv": kv, "raftkv": raftkv, "endpoints": world.endpoints}, sync=True))


def parameters(call: Any) -> str:
    return str(
        inspect.Signature([one.replace(annotation=one.empty) for one in inspect.signature(call).parameters.values()])
    )


def public(kind: type) -> dict[str, str]:
    """Public methods and their parameters, without the types."""
    return {
        name: parameters(call) for name, call in inspect.getmembers(kind, inspect.isroutine) if not name.startswith("_")
    }


def test_both_clients_have_the_same_calls() -> None:
    there, here = public(AsyncClient), public(Client)
    assert set(there) - set(here) == {"aclose", "disown"}
    assert set(here) - set(there) == {"abandon", "wait_closed", "warn_unclosed"}, "of closing, which nobody awaits"
    assert {name: there[name] for name in set(there) & set(here)} == {
        name: here[name] for name in set(there) & set(here)
    }
    assert public(AsyncTransaction) == public(Transaction)
    for there_too, here_too in ((AsyncLease, Lease), (AsyncLock, Lock), (AsyncElection, Election)):
        calls = public(there_too)
        assert {name: calls[name] for name in calls if f"{there_too.__name__}.{name}" not in WITHOUT} == public(
            here_too
        )
        data = [
            {name for name, _ in inspect.getmembers(one, inspect.isdatadescriptor)} for one in (there_too, here_too)
        ]
        assert data[0] == data[1]
    assert parameters(AsyncClient.__init__) == parameters(Client.__init__)
    assert parameters(FakeAsyncClient.__init__) == parameters(raftkv.testing.FakeClient.__init__)
    properties = [
        {name for name, _ in inspect.getmembers(one, inspect.isdatadescriptor)} for one in (AsyncClient, Client)
    ]
    assert properties[0] == properties[1]


def test_what_both_clients_return_is_of_the_same_types() -> None:
    """But for iterators, which are asynchronous ones there."""
    for name, call in methods(AsyncClient).items():
        here = getattr(Client, name.split(".")[1], None)
        if here is not None:
            there = str(call.__annotations__["return"])
            told = re.sub(r"AsyncGenerator\[(.*), None\]", r"Iterator[\1]", there).replace("Async", "")
            assert told == str(here.__annotations__["return"]), name
