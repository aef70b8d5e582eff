"""Guarantee: a command's type says all that front ends, router, log, counters and links between nodes go by."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from raftkv.commands.base import Command, GroupCommand, Read, SlotCommand, Write
from raftkv.commands.group import Check, Genesis, Tick
from raftkv.commands.members import ChangeMembers, Members, Transfer
from raftkv.commands.meta import ChangeCluster, FormCluster, ReadCluster
from raftkv.commands.moving import Complete, Copy, Freeze, ImportBegin, ImportChunk, MoveState
from raftkv.commands.ranges import Scan
from raftkv.commands.records import Cas, Delete, Get, Put
from raftkv.commands.registry import CLIENT_COMMANDS, CLIENT_READS, COMMANDS, PIPED, decode_entry, encode_entry
from raftkv.commands.transactions import Check as TransactionCheck
from raftkv.commands.transactions import DeleteStep, GetStep, IncrementStep, PutStep, Transact
from raftkv.commands.updates import Append, CompareAndDelete, GetAndDelete, Increment, Touch
from raftkv.frontend.grpc.kv import KVService
from raftkv.frontend.port import Origin
from raftkv.node import messages
from raftkv.v1 import kv_pb2

NUMBERS = {
    "get": 0,
    "put": 1,
    "delete": 2,
    "cas": 3,
    "tick": 10,
    "genesis": 11,
    "form_cluster": 20,
    "change_cluster": 21,
    "read_cluster": 22,
    "import_begin": 30,
    "import_chunk": 31,
    "import_final": 32,
    "activate": 33,
    "import_drop": 34,
    "track": 35,
    "freeze": 36,
    "release": 37,
    "untrack": 38,
    "move_state": 40,
    "copy": 43,
    "complete": 44,
    "check": 45,
    "members": 50,
    "change_members": 51,
    "transfer": 52,
    "increment": 60,
    "append": 61,
    "touch": 62,
    "get_and_delete": 63,
    "compare_and_delete": 64,
    "transact": 65,
    "scan": 70,
}
"""Part of the log's format: never changed, never reused. 4 was a scan of one slot."""

CLIENT = b"c" * 16
SOME = [
    Get(1, b"k", mode=2),
    Put(1, b"k", b"v", 3, 4, client=CLIENT, seq=5, first=2),
    Delete(1, b"k", 3, client=CLIENT, seq=5, first=2),
    Cas(1, b"k", b"v", None, 4),
    Scan(1, b"", b"z", b"\xff" * 128, 5, 100, reverse=True, content=1, mode=1),
    Increment(1, b"k", -(2**63), 4, client=CLIENT, seq=5, first=2),
    Append(1, b"k", b"v", 4),
    Touch(1, b"k", 4, 3),
    GetAndDelete(1, b"k", client=CLIENT, seq=5, first=2),
    CompareAndDelete(1, b"k", b"v"),
    Transact(
        1,
        (TransactionCheck(b"k", 3),),
        (GetStep(b"k"), IncrementStep(b"n", 1)),
        (DeleteStep(b"k"),),
        client=CLIENT,
        seq=5,
    ),
    ReadCluster(0),
    ChangeCluster(0, b"t" * 16, "plan", b"\x90"),
    ImportBegin(1, 7, (1, 2)),
    ImportChunk(1, 7, 1, b"", b"chunk"),
    MoveState(1, 7),
    Copy(1, 7, 2, 3, b"cursor", 100),
    Complete(1, 7, 2, 3, b"cursor"),
    Check(1, 9),
    Members(3),
    ChangeMembers(3, (1, 2)),
    Transfer(3, 1),
]


def test_numbers_are_what_they_were() -> None:
    assert NUMBERS.items() <= {kind.name: number for number, kind in COMMANDS.items()}.items()
    assert all(kind.number == number for number, kind in COMMANDS.items())


def test_an_entry_of_the_log_is_what_it_was() -> None:
    ops = [
        Put(1, b"k", b"v", 3, 4, client=b"c", seq=5, first=2),
        Cas(1, b"k", b"v"),
        Freeze(2, 7),
        Tick(),
        Genesis((3,)),
        Transact(
            1, (TransactionCheck(b"k", 3),), (PutStep(b"k", b"v", 4),), (GetStep(b"k"),), client=b"c", seq=5, first=2
        ),
    ]
    encoded = bytes.fromhex(
        "9207 96 9901 01 c4016b c40176 03 04 c40163 05 02 9903 01 c4016b c40176 c0 00 c400 00 00"
        "9324 02 07 910a 920b9103"
        "98 41 01 91 93c4016b03c0 91 9401c4016bc4017604 91 9200c4016b c40163 05 02"
    )
    assert encode_entry(7, ops) == encoded
    assert decode_entry(encoded) == (7, ops)


@pytest.mark.parametrize("op", SOME, ids=lambda op: op.name)
def test_nodes_ask_each_other_for_commands_of_slots_and_groups(op: Command) -> None:
    assert messages.operations(messages.ask(1, 2, Origin(3), [op])) == (1, 2, Origin(3), [op])


@pytest.mark.parametrize("op", [Tick(), Genesis((1,)), FormCluster(b"map")], ids=lambda op: op.name)
def test_what_leaders_propose_nobody_may_ask_for(op: Command) -> None:
    with pytest.raises(messages.Malformed):
        messages.operations(messages.ask(1, 2, Origin(3), [op]))


@pytest.mark.parametrize("op", [op for op in SOME if op.reads], ids=lambda op: op.name)
def test_reads_do_not_stand_in_the_log(op: Command) -> None:
    with pytest.raises(ValueError, match="Invalid value"):
        decode_entry(encode_entry(1, [op]))


def test_every_command_belongs_to_one_family() -> None:
    for kind in COMMANDS.values():
        slot, group = issubclass(kind, SlotCommand), issubclass(kind, GroupCommand)
        assert not (slot and group)
        assert not slot or issubclass(kind, Read) != issubclass(kind, Write)
        assert kind.__doc__, kind
    assert {number for number, kind in CLIENT_COMMANDS.items() if issubclass(kind, Read)} == CLIENT_READS


def test_commands_of_clients_are_those_of_the_protocol() -> None:
    for name, number in kv_pb2.Kind.items():
        assert PIPED[number] is CLIENT_COMMANDS[number], name
    methods = kv_pb2.DESCRIPTOR.services_by_name["KV"].methods_by_name
    assert {kind.rpc for kind in CLIENT_COMMANDS.values() if kind.rpc} == set(methods) - {"Pipeline", "Watch"}
    assert all(name in vars(KVService) for name in methods)


@pytest.mark.parametrize("op", SOME, ids=lambda op: op.name)
def test_commands_are_values(op: Any) -> None:
    assert op == replace(op)
    assert hash(op) == hash(replace(op))
    with pytest.raises(AttributeError):
        setattr(op, op.__struct_fields__[0], 5)
