"""The replacements of planted faults in moves of slots and changes of members."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from raftkv.commands.base import Write
from raftkv.commands.results import Result
from raftkv.node.membership import Membership as Driver
from raftkv.raft.configurations import Configurations, Voters
from raftkv.raft.group import RaftGroup
from raftkv.raft.log import GroupLog
from raftkv.raft.membership import Membership
from raftkv.raft.replication import majority_value
from raftkv.store import meta_commands
from raftkv.store.copying import Summary
from raftkv.store.digest import content_digest
from raftkv.store.meta_state import MetaState
from raftkv.store.moving import Moves
from raftkv.store.records import Store
from raftkv.store.slot import Slot, SlotState
from shards import moves
from shards.map import Group, ShardMap
from shards.moves import Phase, SourceState, Step, TargetState


def cancels_what_was_committed(state: MetaState, shard_map: ShardMap, now: int) -> meta_commands.Outcome:
    """The meta group does not look whether a move was committed before."""
    moves = {
        number: replace(move, phase=Phase.STARTED) if move.phase is Phase.COMMITTED else move
        for number, move in state.moves.items()
    }
    return _cancel(replace(state, moves=moves), shard_map, now)


_cancel = meta_commands._cancel
CANCEL_ANYWAY: Final = {**meta_commands._COMMANDS, "cancel": cancels_what_was_committed}


def writes_while_frozen(store: Store, command: Write) -> Result:
    """The source goes on taking writes until it lets go of the slot."""
    home = store._slots.get(command.slot)
    if home is None or home.state is not SlotState.FROZEN:
        return _write(store, command)
    home.state = SlotState.OWNED
    done = _write(store, command)
    home.state = SlotState.FROZEN
    return done


_write = Store.write

EARLY: Final = {
    **moves._STARTED,
    (SourceState.FROZEN, TargetState.STAGED): Step.ACTIVATE,
    (SourceState.FROZEN, TargetState.ACTIVE): Step.COMMIT,
}
"""The target serves before the meta group has decided."""


def believes_the_copy(store_moves: Moves, move: int, data: bytes) -> Result:
    """The target takes the counters and compares nothing."""
    one = store_moves.imports.get(move)
    if one is not None and one.frozen is None:
        slots = [store_moves._slots[number] for number in one.slots]
        summary = Summary.decode(data)
        count, digest = content_digest(slots, summary.frozen)
        data = summary._replace(records=count, digest=digest).encode()
    return _import_final(store_moves, move, data)


_import_final = Moves.import_final


def forgets_changes(*_: Any) -> list[tuple[bytes, int]]:
    """What was written after a record was copied is not copied again."""
    return []


def leaves_sessions(slots: Any, position: Any, _page: Any) -> bool:
    """The records of who wrote what stay behind."""
    position.session = (len(slots), b"")
    return True


def keeps_the_source_time(store_moves: Moves, slot: Slot, _shift: int) -> None:
    """Times to live go on as if both groups' clocks were one."""
    _serve(store_moves, slot, 0)


_serve = Moves._serve


# -- members


async def all_at_once(driver: Driver, _: MetaState, group: Group, wanted: tuple[int, ...]) -> None:
    """A group's leader is asked for all the voters that are wanted, whatever they were before."""
    members = await driver._members(group.id)
    have = members.voters
    strange = [node for node in wanted if node not in have and node not in group.learners]
    if strange:
        await driver._tell("learn", group.id, strange[0])
    elif set(have) == set(wanted):
        await driver._tell("voters", group.id, members.index, list(have))
    elif members.leader in wanted:
        await driver._change(group.id, wanted)
    else:
        await driver._hand_over(group.id, wanted, members)


def never_too_many(membership: Membership, wanted: Voters) -> str | None:
    """Any list of voters may follow any other, at any time."""
    group = membership._group
    if not group.leads() or group.transfers() or group.node not in wanted:
        return "not at this moment"
    newcomers = set(wanted) - set(group.voters)
    return next((why for node in newcomers if (why := membership._refuse_newcomer(node)) is not None), None)


def counts_learners(group: RaftGroup) -> None:
    """A learner's disk counts as much as a voter's."""
    core = group.core
    held = [core.match_index(node) for node in group.membership.replicas()]
    index = int(majority_value([group.log.durable_index, *held]))
    if index > core.commit_index() and group.log.term_at(index) == group._lead_term:
        core.set_commit_index(index)


def forgets_changes_of_voters(log: GroupLog, *arguments: Any, **options: Any) -> None:
    """A restarted node goes on with the voters at its log's base."""
    _log_init(log, *arguments, **options)
    log.configurations = Configurations(log.configurations._base)


_log_init = GroupLog.__init__
