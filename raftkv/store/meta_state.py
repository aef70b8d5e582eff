"""What the meta group knows, as immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from raftkv.api.status import FinishedMove, Job, Move, PlannedMove
from raftkv.errors import RaftKVError
from raftkv.store.codec import binary, pack, text, whole
from raftkv.store.users import NO_USERS, Users, decode, encode
from shards.map import ShardMap
from shards.moves import Phase

MAX_FINISHED: Final = 1024
"""Finished moves that are remembered for reports: as many as there are slots in a usual cluster."""


class Refused(RaftKVError):
    """A command that is well formed but must not be executed now; the message says why."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """Lets one data folder join. ``expires``: group time in ms. ``incarnation``: of the folder that has, "" = none."""

    expires: int
    incarnation: str = ""


@dataclass(frozen=True, slots=True)
class MetaState:
    """All that the meta group replicates. ``last_group``, ``last_node``, ``last_move``: highest id ever given.

    ``wanted``: group -> voters that it is to have. ``draining``: nodes that get no further replicas.
    ``garbage``: (group, node) of replicas that are no longer members, until their nodes have dropped them.
    ``noted``: group -> its commit index as of which its voters were noted last. ``join_tokens``: by their SHA-256.
    ``users``: who may do what.
    """

    map: ShardMap | None = None
    last_group: int = 0
    last_node: int = 0
    last_move: int = 0
    last_job: int = 0
    moves: Mapping[int, Move] = field(default_factory=dict)
    job: Job | None = None
    finished: tuple[FinishedMove, ...] = ()
    wanted: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    draining: tuple[int, ...] = ()
    garbage: frozenset[tuple[int, int]] = frozenset()
    noted: Mapping[int, int] = field(default_factory=dict)
    join_tokens: Mapping[bytes, JoinToken] = field(default_factory=dict)
    users: Users = NO_USERS

    def to_wire(self) -> list[Any]:
        """Plain values for msgpack. Equal states give equal forms."""
        job = self.job
        return [
            None if self.map is None else self.map.to_wire(),
            [self.last_group, self.last_node, self.last_move, self.last_job],
            [[m.id, m.slots, m.source, m.target, str(m.phase), m.started] for _, m in sorted(self.moves.items())],
            None if job is None else _job_wire(job),
            [
                [one.id, one.slots, one.source, one.target, one.committed, one.records, one.bytes, one.freeze, one.took]
                for one in self.finished
            ],
            [[group, voters] for group, voters in sorted(self.wanted.items())],
            self.draining,
            sorted(self.garbage),
            [[group, index] for group, index in sorted(self.noted.items())],
            [[digest, token.expires, token.incarnation] for digest, token in sorted(self.join_tokens.items())],
            encode(self.users),
        ]

    @staticmethod
    def from_wire(wire: Any) -> MetaState:
        """What :meth:`to_wire` encoded. Raises ValueError or TypeError for anything else."""
        # States of before there were tokens and users are in data folders.
        shard_map, last, moves, job, finished, wanted, draining, garbage, noted, *rest = wire
        join_tokens, users = rest or ([], encode(NO_USERS))
        last_group, last_node, last_move, last_job = _numbers(last)
        return MetaState(
            None if shard_map is None else ShardMap.from_wire(shard_map),
            last_group,
            last_node,
            last_move,
            last_job,
            {
                whole(number): Move(number, _numbers(slots), whole(source), whole(target), Phase(phase), whole(started))
                for number, slots, source, target, phase, started in moves
            },
            None if job is None else _job(job),
            tuple(FinishedMove(*_counters(row)) for row in finished),
            {whole(group): _numbers(voters) for group, voters in wanted},
            _numbers(draining),
            frozenset((whole(group), whole(node)) for group, node in garbage),
            {whole(group): whole(index) for group, index in noted},
            {binary(digest): JoinToken(whole(expires), text(folder)) for digest, expires, folder in join_tokens},
            decode(binary(users)),
        )


def map_digest(shard_map: ShardMap) -> bytes:
    """16 bytes; equal for equal maps."""
    return blake2b(pack(shard_map.to_wire()), digest_size=16, person=b"raftkv-map").digest()


def _job_wire(job: Job) -> list[Any]:
    pending = [[plan.slots, plan.source, plan.target] for plan in job.pending]
    counts = [job.moves, job.slots, job.rate, job.concurrency, job.started]
    return [job.id, pending, *counts, job.paused, job.cancelled, job.done, job.done_slots, job.failed, job.ended]


def _job(wire: list[Any]) -> Job:
    number, pending, *rest = wire
    plans = tuple(PlannedMove(_numbers(slots), whole(source), whole(target)) for slots, source, target in pending)
    return Job(whole(number), plans, *_counters(rest))


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(whole(value) for value in values)


def _counters(values: Any) -> list[Any]:
    """Numbers and truth values, as they are. Raises ValueError for anything else."""
    return [value if type(value) is bool else whole(value) for value in values]
