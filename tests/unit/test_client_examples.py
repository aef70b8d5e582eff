"""Guarantee: every call of the clients has an example that is true, for the asyncio client and for the other one."""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from raftkv import AsyncClient, AsyncTransaction, Client, Transaction
from raftkv.commands.group import Genesis
from raftkv.store.records import Store
from tests.admin_world import World, world_of

CALLS = [name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if not name.startswith("_")]
WITHOUT = {"disown"}
"""No call."""
_PARSER = doctest.DocTestParser()
_CHECKER = doctest.OutputChecker()


def examples(name: str) -> list[doctest.Example]:
    return _PARSER.get_examples(inspect.getdoc(getattr(AsyncClient, name)) or "")


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


async def run(source: str, names: dict[str, Any]) -> str:
    """What an interpreter of asyncio would show."""
    try:
        try:
            code = compile(source, "example", "eval", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        except SyntaxError:
            code = compile(source, "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)
        if inspect.iscoroutine(value):
            value = await value
    except Exception as error:  # noqa: BLE001 - to be compared
        return f"{type(error).__module__}.{type(error).__qualname__}: {error}\n"
    return "" if value is None else f"{value!r}\n"


async def check(name: str, names: dict[str, Any], *, sync: bool = False) -> None:
    for example in examples(name):
        source = re.sub(r"\b(await|async) ", "", example.source) if sync else example.source
        shown = await run(source, names)
        wanted = example.exc_msg or example.want
        assert _CHECKER.check_output(wanted, shown, doctest.ELLIPSIS), f"{source}is {shown}, not {wanted}"


def test_every_call_has_an_example() -> None:
    assert {name for name in CALLS if not examples(name)} == WITHOUT


@pytest.mark.parametrize("name", sorted(set(CALLS) - WITHOUT))
def test_the_examples_are_true(name: str, world: World) -> None:
    async def ask() -> None:
        async with AsyncClient(world.endpoints, timeout=60.0) as kv:
            await check(name, {"kv": kv})

    asyncio.run(ask())


@pytest.mark.parametrize("name", sorted(set(CALLS) - WITHOUT))
def test_the_examples_are_true_without_await(name: str, world: World) -> None:
    with Client(world.endpoints, timeout=60.0) as kv:
        asyncio.run(check(name, {"kv": kv}, sync=True))


def public(kind: type) -> dict[str, str]:
    """Public methods and their parameters, without the types."""
    return {
        name: str(
            inspect.Signature(
                [one.replace(annotation=one.empty) for one in inspect.signature(call).parameters.values()]
            )
        )
        for name, call in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_calls() -> None:
    there, here = public(AsyncClient), public(Client)
    assert set(there) - set(here) == {"aclose", "disown"}
    assert set(here) - set(there) == {"abandon", "wait_closed", "warn_unclosed"}, "of closing, which nobody awaits"
    assert {name: there[name] for name in set(there) & set(here)} == {
        name: here[name] for name in set(there) & set(here)
    }
    assert public(AsyncTransaction) == public(Transaction)
