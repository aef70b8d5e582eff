"""Messages of a Pipeline, in both of their forms.

Packed, a message is one field of bytes: msgpack of the ids of the operations and of the commands or results that they
name, as nodes send them to each other. That takes a third of the CPU of the other form, in which every operation and
result is a message of protobuf's. A node announces that it takes packed messages, so a client that knows of them asks
an older node in the other form; and an older client, which knows nothing of it, is answered in the form in which it
asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple

from google.protobuf.message import DecodeError
from msgspec import Meta
from msgspec.msgpack import Decoder

from raftkv.api.results import fill_result, read_result
from raftkv.commands.base import Write
from raftkv.commands.registry import Piped, encode
from raftkv.commands.results import Result
from raftkv.commands.transactions import Transact
from raftkv.errors import InvalidArgument, TooLarge
from raftkv.limits import MAX_BATCH_OPS, MAX_MESSAGE_BYTES, STEP_OVERHEAD
from raftkv.v1 import kv_pb2

PACKED_KEY: Final = "raftkv-packed"
"""Initial metadata of a Pipeline of a node that takes packed messages."""
PACKED_FORM: Final = "2"
"""Its value: which commands packed messages may hold. They are asked of nodes that say the same: one that does not know
a command of a packed message can read none of it."""

_STEP_BYTES: Final = 4
"""A check or an operation of a transaction takes at least so many in a message."""

_MOST: Final = Meta(max_length=MAX_BATCH_OPS)
_Ids = Annotated[list[Annotated[int, Meta(ge=0)]], _MOST]
_commands: Final[Decoder[tuple[list[int], list[Piped]]]] = Decoder(tuple[_Ids, Annotated[list[Piped], _MOST]])
_results: Final[Decoder[tuple[list[int], list[Result]]]] = Decoder(tuple[list[int], list[Result]])


class Batch(NamedTuple):
    """Operations that are asked for together: ``commands``, named by ``ids``. Writes are of one client id."""

    ids: list[int]
    commands: list[Piped]
    timeout_ms: int


class Answers(NamedTuple):
    """Results of the operations ``ids``, and the epoch of the node's map."""

    ids: Sequence[int]
    results: Sequence[Result]
    map_epoch: int


def request_of(batch: Batch, *, packed: bool) -> kv_pb2.PipelineRequest:
    """The message that asks for ``batch``."""
    if packed:
        return kv_pb2.PipelineRequest(timeout_ms=batch.timeout_ms, packed=encode((batch.ids, batch.commands)))
    request = kv_pb2.PipelineRequest(timeout_ms=batch.timeout_ms)
    for number, command in zip(batch.ids, batch.commands, strict=True):
        message = request.operations.add(id=number, kind=kv_pb2.Kind.ValueType(command.number))
        command.fill(message)
        if isinstance(command, Write) and command.client:
            request.client_id, request.first_incomplete = command.client, command.first
    return request


def read_request(data: bytes) -> tuple[kv_pb2.PipelineRequest, Sequence[int], Sequence[Piped]]:
    """The message ``data``, and the operations in it if it is packed: their ids and commands.

    The types of what they carry are checked, and bounds that their types tell. Raises InvalidArgument, or TooLarge for
    more than MAX_BATCH_OPS operations.
    """
    try:
        request = kv_pb2.PipelineRequest.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"malformed message: {error}") from None
    if len(request.operations) > MAX_BATCH_OPS:
        raise TooLarge(f"a message of {len(request.operations)} operations; the maximum is {MAX_BATCH_OPS}")
    many = len(data) > MAX_BATCH_OPS * _STEP_BYTES
    if not request.packed:
        if many:
            _check_transactions(map(_size_of, request.operations))
        return request, (), ()
    try:
        ids, commands = _commands.decode(request.packed)
    except ValueError as error:
        raise InvalidArgument(f"malformed packed operations: {error}") from None
    if len(ids) != len(commands) or request.operations:
        raise InvalidArgument(
            f"{len(ids)} ids, {len(commands)} packed operations and {len(request.operations)} others in one message"
        )
    if many:
        _check_transactions(command.size() for command in commands if type(command) is Transact)
    return request, ids, commands


def _check_transactions(sizes: Iterable[int]) -> None:
    """Raises TooLarge for transactions of these sizes that have more steps than a message has operations."""
    total = 0
    for size in sizes:
        total += size
        if total > MAX_MESSAGE_BYTES:
            raise TooLarge(
                f"the transactions of a message come to more than {MAX_MESSAGE_BYTES} bytes, with {STEP_OVERHEAD} for "
                "each check and operation"
            )


def _size_of(operation: kv_pb2.Operation) -> int:
    """As of the command, 0 for what is no transaction."""
    if not operation.HasField("transaction"):
        return 0
    txn = operation.transaction
    return txn.ByteSize() + STEP_OVERHEAD * (len(txn.checks) + len(txn.steps) + len(txn.otherwise))


def response_of(answers: Answers, *, packed: bool) -> kv_pb2.PipelineResponse:
    """The message that brings ``answers``."""
    if packed:
        return kv_pb2.PipelineResponse(map_epoch=answers.map_epoch, packed=encode((answers.ids, answers.results)))
    response = kv_pb2.PipelineResponse(map_epoch=answers.map_epoch)
    add = response.results.add
    for number, result in zip(answers.ids, answers.results, strict=True):
        message = add()
        message.id = number
        fill_result(message, result)
    return response


def answers_of(response: kv_pb2.PipelineResponse) -> Answers:
    """What :func:`response_of` wrote. Raises ValueError if no node of raftkv did."""
    if response.packed:
        ids, results = _results.decode(response.packed)
        if len(ids) != len(results):
            raise ValueError(f"{len(ids)} ids and {len(results)} results in one message")
        return Answers(ids, results, response.map_epoch)
    ids = [message.id for message in response.results]
    return Answers(ids, [read_result(message) for message in response.results], response.map_epoch)
