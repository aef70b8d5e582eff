"""The replacements of planted faults in moves of slots and changes of members."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from raftkv.store import meta_commands
from raftkv.store.copying import Summary
from raftkv.store.digest import content_digest
from raftkv.store.meta_state import MetaState
from raftkv.store.moving import Moves
from raftkv.store.operations import Result
from raftkv.store.records import Store
from raftkv.store.slot import Slot, SlotState
from shards.map import ShardMap
from shards.moves import Phase


def reads_while_frozen(store: Store, slot: int, key: bytes) -> Result:
    """The source goes on answering reads until it lets go of the slot."""
    home = store._slots.get(slot)
    if home is None or home.state is not SlotState.FROZEN:
        return _read(store, slot, key)
    home.state = SlotState.OWNED
    found = _read(store, slot, key)
    home.state = SlotState.FROZEN
    return found


_read = Store.read


def commits_what_was_cancelled(state: MetaState, shard_map: ShardMap, now: int, number: int) -> meta_commands.Outcome:
    """The meta group does not look whether a move was cancelled before."""
    move = state.moves[number]
    if move.phase is Phase.CANCELLED:
        changed = {**state.moves, number: replace(move, phase=Phase.STARTED)}
        state = replace(state, moves=changed)
    return _commit(state, shard_map, now, number)


_commit = meta_commands._commit
COMMANDS: Final = {**meta_commands._COMMANDS, "commit": commits_what_was_cancelled}


def believes_the_copy(store_moves: Moves, now: int, move: int, data: bytes) -> Result:
    """The target takes the counters and compares nothing."""
    one = store_moves.imports.get(move)
    if one is not None and one.frozen is None:
        slots = [store_moves._slots[number] for number in one.slots]
        summary = Summary.decode(data)
        count, digest = content_digest(slots, summary.frozen)
        data = summary._replace(records=count, digest=digest).encode()
    return _import_final(store_moves, now, move, data)


_import_final = Moves._import_final


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
