"""The model of :mod:`raftkv.api.status` as messages of the service Admin, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from raftkv.api.status import ClusterState, Digests, FinishedMove, Job, Move, NodeStatus, Role
from raftkv.errors import Unavailable, WrongVersion
from raftkv.v1 import admin_pb2
from shards.map import Group, LeadersOver, MapError, Node, ShardMap
from shards.moves import Phase
from shards.slots import SLOT_RULE, rule_refusal

if TYPE_CHECKING:
    from google.protobuf.message import Message

T = TypeVar("T")

_NAMES: Final = {
    "uptime": "uptime_seconds",
    "round_trip": "round_trip_seconds",
    "silence": "silence_seconds",
    "started": "started_ms",
    "ended": "ended_ms",
    "freeze": "freeze_ms",
    "took": "took_ms",
}
"""Fields that have their unit in their names on the wire."""
_PHASE: Final = "MOVE_PHASE_"


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of the message that says what ``value`` says."""
    return {_NAMES.get(one.name, one.name): _plain(getattr(value, one.name)) for one in fields(value)}


def read(kind: type[T], message: Message) -> T:
    """What :func:`fields_of` wrote. A role that is not known, of a later version, is that of a follower."""
    found: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        wire = _NAMES.get(name, name)
        absent = get_origin(hint) is UnionType and not message.HasField(wire)
        found[name] = None if absent else _value(hint, getattr(message, wire))
    return kind(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Phase):
        return _PHASE + value.name
    return fields_of(value) if is_dataclass(value) else value


def _value(hint: Any, raw: Any) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        return tuple(_value(get_args(hint)[0], one) for one in raw)
    if origin is Mapping:
        return dict(raw)
    if hint is Role:
        return Role(raw) if raw in Role._value2member_map_ else Role.FOLLOWER
    if hint is Phase:
        return Phase[admin_pb2.MovePhase.Name(raw).removeprefix(_PHASE)]
    return read(cast(type, hint), raw) if is_dataclass(hint) else raw


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def status_message(status: NodeStatus) -> admin_pb2.GetStatusResponse:
    """What a node says of itself."""
    return admin_pb2.GetStatusResponse(**fields_of(status))


def status_of(message: admin_pb2.GetStatusResponse) -> NodeStatus:
    """What :func:`status_message` wrote."""
    return read(NodeStatus, message)


def digests_of(message: admin_pb2.GetDigestsResponse) -> Digests | None:
    """None if they are not computed (yet)."""
    return read(Digests, message) if message.done else None


def map_message(known: ShardMap, leaders: Mapping[int, int], *, to_member: bool = False) -> admin_pb2.GetMapResponse:
    """A shard map, and who leads each group as far as known. ``to_member``: with the nodes' incarnations."""
    nodes: Any = _plain(known.nodes if to_member else [replace(node, incarnation="") for node in known.nodes])
    groups: list[Any] = [{**fields_of(group), "leader": leaders.get(group.id, 0)} for group in known.groups]
    ranges = [admin_pb2.SlotRange(first=first, last=last, group=group) for first, last, group in known.ranges()]
    return admin_pb2.GetMapResponse(
        cluster_id=known.cluster_id,
        epoch=known.epoch,
        slots=known.slots,
        nodes=nodes,
        groups=groups,
        ranges=ranges,
        removed=known.removed,
        slot_rule=SLOT_RULE,
        leaders_over=leaders_over_value(known.leaders_over),
        index=known.index,
    )


def map_of(message: admin_pb2.GetMapResponse) -> ShardMap:
    """The map that ``message`` carries.

    Raises WrongVersion, or Unavailable if it is none: then another node may have one.
    """
    if refusal := rule_refusal(message.slot_rule):
        raise WrongVersion(refusal)
    try:
        return ShardMap(
            message.cluster_id,
            message.epoch,
            message.slots,
            tuple(read(Node, one) for one in message.nodes),
            tuple(read(Group, one) for one in message.groups),
            tuple(part.group for part in message.ranges for _ in range(part.first, part.last + 1)),
            tuple(message.removed),
            leaders_over_of(message.leaders_over),
            message.index,
        )
    except MapError as problem:
        raise Unavailable(f"a node answered with an invalid shard map: {problem}") from None


def leaders_over_value(over: LeadersOver) -> admin_pb2.LeadersOver.ValueType:
    """``over`` on the wire."""
    return admin_pb2.LEADERS_OVER_NODES if over is LeadersOver.NODES else admin_pb2.LEADERS_OVER_HOSTS


def leaders_over_of(value: admin_pb2.LeadersOver.ValueType) -> LeadersOver:
    """What :func:`leaders_over_value` wrote; hosts for a value that is not known here."""
    return LeadersOver.NODES if value == admin_pb2.LEADERS_OVER_NODES else LeadersOver.HOSTS


def state_message(state: ClusterState, known: admin_pb2.GetMapResponse) -> admin_pb2.GetStateResponse:
    """What the meta group says; ``known``: its map, as a message."""
    job: Any = _plain(state.job)
    moves: Any = _plain(state.moves)
    finished: Any = _plain(state.finished)
    wanted = [
        admin_pb2.WantedVoters(group=group, voters=voters, waiting=state.waiting.get(group, ""))
        for group, voters in sorted(state.wanted.items())
    ]
    return admin_pb2.GetStateResponse(
        map=known,
        now_ms=state.now,
        job=job,
        moves=moves,
        finished=finished,
        wanted=wanted,
        draining=sorted(state.draining),
    )


def state_of(message: admin_pb2.GetStateResponse, *, vouched: bool) -> ClusterState:
    """What :func:`state_message` wrote, or a message with nothing but a map. Raises as :func:`map_of` does."""
    return ClusterState(
        map_of(message.map),
        {group.id: group.leader for group in message.map.groups if group.leader},
        vouched,
        message.now_ms,
        read(Job, message.job) if message.HasField("job") else None,
        tuple(read(Move, one) for one in message.moves),
        tuple(read(FinishedMove, one) for one in message.finished),
        {one.group: tuple(one.voters) for one in message.wanted},
        {one.group: one.waiting for one in message.wanted if one.waiting},
        frozenset(message.draining),
    )
