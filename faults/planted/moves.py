"""What takes the place of safeguards in moves of slots and changes of members."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from raftkv.clock import Clock, sleep
from raftkv.commands.base import GroupCommand, Write
from raftkv.commands.members import ChangeMembers
from raftkv.commands.moving import Activate, ImportBegin, Track
from raftkv.commands.ranges import Scan
from raftkv.commands.results import Result, ScanPage
from raftkv.node.drivers.internal_client import Ask, Failed, Leading, meta_command
from raftkv.node.drivers.membership import MembershipDriver
from raftkv.node.drivers.mover import Mover
from raftkv.raft.consensus import Consensus
from raftkv.raft.replication import Progress
from raftkv.store import meta_commands
from raftkv.store.copying import Loaded, Summary, load
from raftkv.store.meta_state import MetaState
from raftkv.store.records import Store
from raftkv.store.slot import SlotState
from shards import moves
from shards.moves import Phase, SourceState, Step, TargetState

# -- commands as they are executed


def cancels_what_was_committed(
    state: MetaState, now: int, verb: str, arguments: Sequence[Any]
) -> meta_commands.Outcome:
    """The meta group does not look whether a move was committed before."""
    if verb == "cancel":
        under_way = {
            number: replace(move, phase=Phase.STARTED) if move.phase is Phase.COMMITTED else move
            for number, move in state.moves.items()
        }
        state = replace(state, moves=under_way)
    return _execute_meta(state, now, verb, arguments)


_execute_meta = meta_commands.execute


def serves_early(phase: Phase, source: SourceState, target: TargetState) -> Step:
    """The target serves before the meta group has decided."""
    if phase is Phase.STARTED and source is SourceState.FROZEN:
        if target is TargetState.STAGED:
            return Step.ACTIVATE
        if target is TargetState.ACTIVE:
            return Step.COMMIT
    return _next_step(phase, source, target)


_next_step = moves.next_step


def writes_while_frozen(store: Store, command: Write) -> Result:
    """The source goes on taking writes until it lets go of the slot."""
    slot = store.slot(command.slot)
    if slot is None or slot.state is not SlotState.FROZEN:
        return _write(store, command)
    slot.state = SlotState.OWNED
    result = _write(store, command)
    slot.state = SlotState.FROZEN
    return result


_write = Store.write


class _Forgetful(dict[int, tuple[int, int]]):
    """Says what is in it to nobody who asks for one slot."""

    def get(self, _: object, default: Any = None) -> Any:
        return default


def forgets_what_is_over(store: Store, *entry: Any) -> list[Result]:
    """A late step of a move that is over finds nothing that speaks against it."""
    if not isinstance(store.moves.ended, _Forgetful):
        store.moves.ended = _Forgetful(store.moves.ended)
    return _apply(store, *entry)


_apply = Store.apply


def steps_come_again(driver: Mover, leading: Leading, ask: Ask, clock: Clock, *rest: Any) -> None:
    """What begins a move is asked for once more when that move is most likely over."""

    async def again(op: GroupCommand) -> None:
        await sleep(clock, 0.5)
        with contextlib.suppress(Failed):
            await ask(op)

    repeats: list[asyncio.Task[None]] = []

    async def ask_twice(op: GroupCommand) -> Result:
        result = await ask(op)
        if isinstance(op, Track | ImportBegin):
            repeats.append(asyncio.get_running_loop().create_task(again(op)))
        return result

    _drive(driver, leading, ask_twice, clock, *rest)


_drive = Mover.__init__


def times_apart(replica: Consensus, index: int, time: int, now: float) -> bool:
    """Each group's time begins a minute after that of the group before."""
    return _applied(replica, index, max(time, replica.group * 60_000), now)


_applied = Consensus.applied


def keeps_the_source_time(command: Activate, store: Store) -> Result:
    """Times to live go on as if both groups' clocks were one."""
    one = store.moves.imports.get(command.move)
    if one is not None and one.frozen is not None:
        one.frozen = store.time
    return _activate(command, store)


_activate = Activate.apply

# -- what is copied


class _Anything:
    """Equal to whatever it is compared with."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False


def believed(data: bytes) -> Summary:
    """The target takes the counters and compares nothing."""
    whatever: Any = _Anything()
    return _decode(data)._replace(records=whatever, digest=whatever)


_decode = Summary.decode
BELIEVED = staticmethod(believed)


def forgets_changes(*_: Any) -> list[tuple[bytes, int]]:
    """What was written after a record was copied is not copied again."""
    return []


def leaves_sessions(blob: bytes) -> Loaded:
    """The records of who wrote what stay behind."""
    page = load(blob)
    return page._replace(parts=[part._replace(sessions=[]) for part in page.parts])


# -- scans


def claims_all_slots(store: Store, op: Scan) -> Result:
    """A page says that it has all slots that were asked for."""
    result = _scan(store, op)
    page = result.answer
    return (
        result
        if not isinstance(page, ScanPage)
        else structs.replace(result, answer=structs.replace(page, slots=op.slots))
    )


_scan = Store.scan

# -- members


def all_at_once(driver: MembershipDriver, leading: Leading, ask: Ask, *rest: Any) -> None:
    """A group's leader is asked for all the voters that are wanted, as soon as all of them have the log."""
    rng = rest[-1]

    async def ask_for_all(op: GroupCommand) -> Result:
        state = leading()
        if not isinstance(op, ChangeMembers) or state is None or state.map is None or op.group not in state.wanted:
            return await ask(op)
        group, wanted = state.map.group(op.group), state.wanted[op.group]
        strange = [node for node in wanted if node not in (*group.voters, *group.learners)]
        try:
            if strange:
                return await ask(meta_command(rng, "learn", group.id, strange[0]))
            return await ask(ChangeMembers(group.id, tuple(sorted(wanted))))
        except Failed:
            return await ask(op)

    _init(driver, leading, ask_for_all, *rest)


_init = MembershipDriver.__init__


def counts_all(progress: Mapping[int, Progress], _voters: Collection[int]) -> dict[int, Progress]:
    """A learner's disk counts as much as a voter's."""
    return dict(progress)
