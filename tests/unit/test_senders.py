"""Guarantee: what nodes say to groups as a whole is taken from nodes only, whichever way a client tries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from grpc import aio

from raftkv.api.pipeline import read_request
from raftkv.commands.base import Command, GroupCommand, Sender
from raftkv.commands.group import Check, Genesis, Tick
from raftkv.commands.members import ChangeMembers, Members, Transfer
from raftkv.commands.meta import OPERATORS_VERBS, ChangeCluster, ConfirmMap, FormCluster, ReadCluster
from raftkv.commands.moving import ImportDrop, MoveState, Release
from raftkv.commands.records import Get
from raftkv.commands.registry import CLIENT_COMMANDS, COMMANDS, encode
from raftkv.commands.results import Result
from raftkv.errors import Code, InvalidArgument
from raftkv.frontend.grpc.admin import _change_arguments
from raftkv.frontend.port import NODE, Caller, Origin
from raftkv.node import messages
from raftkv.store.codec import pack
from raftkv.store.meta_commands import _COMMANDS
from raftkv.v1 import admin_pb2, kv_pb2, kv_pb2_grpc
from tests.rpc_fakes import FakeCluster
from tests.unit.test_node_router import _Life

TOKEN = b"t" * 16


def change(verb: str) -> ChangeCluster:
    return ChangeCluster(0, TOKEN, verb, pack([]))


OF_NODES: list[GroupCommand] = [
    Release(1, 1),
    ImportDrop(1, 1, (1,)),
    MoveState(1, 1),
    Members(1),
    ChangeMembers(1, (1, 2)),
    ConfirmMap(0, b""),
    *(change(verb) for verb in sorted(set(_COMMANDS) - OPERATORS_VERBS)),
]
OF_OPERATORS: list[GroupCommand] = [
    ReadCluster(0),
    Transfer(1, 2),
    Check(1, 7),
    *(change(verb) for verb in sorted(OPERATORS_VERBS)),
]


def label(op: Command) -> str:
    return f"{op.name} {op.verb}" if isinstance(op, ChangeCluster) else op.name


def test_who_may_ask_for_what_is_known_of_every_command() -> None:
    assert set(_COMMANDS) >= OPERATORS_VERBS
    assert {op.sender for op in OF_NODES} == {Sender.NODE}
    assert {op.sender for op in OF_OPERATORS} == {Sender.OPERATOR}
    assert Get(1, b"k").sender == Sender.CLIENT
    group = {number for number, kind in COMMANDS.items() if issubclass(kind, GroupCommand)}
    assert not group & set(CLIENT_COMMANDS)
    assert change("a verb that is made later").sender == Sender.NODE


# A client's ways: Pipeline, unary calls, the service Admin


def test_a_pipeline_takes_no_command_of_nodes() -> None:
    """By its number, as in the log and between nodes."""

    async def main() -> None:
        async with FakeCluster() as cluster, aio.insecure_channel(cluster.endpoints) as channel:
            numbers = sorted({*COMMANDS, *range(100)} - set(CLIENT_COMMANDS))

            async def requests() -> AsyncIterator[kv_pb2.PipelineRequest]:
                request = kv_pb2.PipelineRequest(client_id=b"c" * 16)
                for number in numbers:
                    request.operations.add(id=number, kind=number, key=b"k", value=b"v")
                yield request

            codes: dict[int, int] = {}
            stub = kv_pb2_grpc.KVStub(channel)
            async for response in stub.Pipeline(requests()):
                codes.update({result.id: result.code for result in response.results})
            assert codes == dict.fromkeys(numbers, int(Code.INVALID_ARGUMENT))
            assert not cluster.frontends[0].ops

    asyncio.run(main())


@pytest.mark.parametrize("op", [*OF_NODES, *OF_OPERATORS, Tick(), Genesis((1,)), FormCluster(b"map")], ids=label)
def test_nor_does_a_packed_message_of_a_pipeline(op: Command) -> None:
    """Which holds commands as nodes send them to each other."""
    good = encode(([1], [Get(1, b"k")]))
    assert read_request(kv_pb2.PipelineRequest(packed=good).SerializeToString())[2] == [Get(1, b"k")]
    bad = encode(([1, 2], [Get(1, b"k"), op]))
    with pytest.raises(InvalidArgument, match="malformed packed operations"):
        read_request(kv_pb2.PipelineRequest(packed=bad).SerializeToString())


def test_no_call_of_the_service_kv_has_a_command_of_nodes() -> None:
    methods = kv_pb2.DESCRIPTOR.services_by_name["KV"].methods_by_name
    assert set(methods) - {"Pipeline"} == {kind.rpc for kind in CLIENT_COMMANDS.values() if kind.rpc}


def test_no_change_that_operators_ask_for_is_a_step_of_nodes() -> None:
    for name, field in admin_pb2.ChangeRequest.DESCRIPTOR.fields_by_name.items():
        if field.containing_oneof is None:
            continue
        request = admin_pb2.ChangeRequest()
        if field.message_type is not None:
            getattr(request, name).SetInParent()
        else:
            setattr(request, name, b"d" if field.type == field.TYPE_BYTES else 1)
        arguments = _change_arguments(request)
        assert arguments is not None, name
        assert arguments[0] in OPERATORS_VERBS, name


# The router, where all ways meet


def answered(op: Command, caller: Caller) -> list[Result]:
    life = _Life(1)
    results: list[Result] = []

    async def main() -> None:
        life.router.submit([op], 5.0, lambda _, result: results.append(result), caller)
        await life.clock.advance(0.0)

    asyncio.run(main())
    return results if results or not life.peers.sent else [Result(Code.OK, detail="forwarded")]


@pytest.mark.parametrize("op", [*OF_NODES, *OF_OPERATORS], ids=label)
def test_a_node_takes_no_command_about_a_group_from_a_client(op: GroupCommand) -> None:
    (result,) = answered(op, Caller.at("ipv4:127.0.0.1:5"))
    assert result.code == Code.INVALID_ARGUMENT
    assert f"{op.name} is taken from {op.sender.name.lower()}s only, not from clients" in result.detail
    assert answered(op, NODE) == [Result(Code.OK, detail="forwarded")]


@pytest.mark.parametrize("op", OF_NODES, ids=label)
def test_nor_a_step_of_nodes_from_an_operator(op: GroupCommand) -> None:
    (result,) = answered(op, Caller.at("ipv4:127.0.0.1:5", Sender.OPERATOR))
    assert (result.code, "not from operators" in result.detail) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("op", [*OF_NODES, *OF_OPERATORS], ids=label)
def test_a_forwarded_operation_is_taken_as_from_whom_it_came(op: GroupCommand) -> None:
    """A node that passes on what it should not have taken does not get it past the next one."""
    life = _Life(1)

    async def main() -> None:
        for number, sender in enumerate(Sender):
            life.router.on_forwarded(1, number, 1000, Origin(7, sender, "somebody"), [op])
        await life.clock.advance(0.0)

    asyncio.run(main())
    codes = {number: result.code for _, sent in life.peers.sent for number, _, result in messages.answers(sent)}
    refused = {int(sender): Code.INVALID_ARGUMENT for sender in Sender if sender < op.sender}
    assert codes == {**{int(sender): Code.NOT_LEADER for sender in Sender}, **refused}


def test_what_is_forwarded_says_for_whom() -> None:
    life = _Life(1)
    callers = [Caller(Origin(5, Sender.CLIENT, "ann")), Caller(Origin(5, Sender.CLIENT, "bob")), NODE]

    async def main() -> None:
        for caller in callers:
            life.router.submit([Get(7, b"k")], 5.0, lambda *_: None, caller)
        await life.clock.advance(0.0)

    asyncio.run(main())
    assert [messages.operations(message)[2] for _, message in life.peers.sent] == [one.origin for one in callers]


@pytest.mark.parametrize("op", [Tick(), Genesis((1,)), FormCluster(b"map")], ids=label)
def test_what_leaders_propose_by_themselves_is_taken_from_nobody(op: Command) -> None:
    with pytest.raises(messages.Malformed):
        messages.operations(messages.ask(1, 2, Origin(), [op]))
    (result,) = answered(op, NODE)
    assert (result.code, "proposed by leaders only" in result.detail) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("wrong", [{4: 3}, {4: -1}, {4: True}, {5: b"user"}, {5: "u" * 256}, {3: "1"}])
def test_a_malformed_origin_is_no_message(wrong: dict[int, object]) -> None:
    message = messages.ask(1, 1000, Origin(7, Sender.CLIENT, "somebody"), [Get(7, b"k")])
    assert messages.operations(message)[2] == Origin(7, Sender.CLIENT, "somebody")
    for at, value in wrong.items():
        message[at] = value
    with pytest.raises(messages.Malformed):
        messages.operations(message)
