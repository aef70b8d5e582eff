"""Elections of one replica: who may stand, who gets a vote, and when none is given.

Votes and pre-votes are asked of the voters that the own log names, and only theirs count. They are given to any node
that asks: a voter may not know yet that the candidate, or it itself, is one (Ongaro, dissertation, 4.1). A removed node
that goes on asking is kept quiet by pre-votes and by stickiness (4.2.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftkv.clock import Clock
from raftkv.raft.config import RaftConfig
from raftkv.raft.core import CANDIDATE, FOLLOWER
from raftkv.raft.messages import Type
from raftkv.raft.ports import Outbox

if TYPE_CHECKING:
    from raftkv.raft.group import RaftGroup


class Elections:
    """``floor``: term and index of the last entry of a log that this node held before its replica was dropped.

    It gives votes as if it still held that log: what it acknowledged then may be committed.
    """

    def __init__(
        self, group: RaftGroup, outbox: Outbox, clock: Clock, config: RaftConfig, floor: tuple[int, int]
    ) -> None:
        self._group = group
        self._outbox = outbox
        self._clock = clock
        self._config = config
        self._floor = floor
        self.heard = float("-inf")
        """When a leader was heard last."""
        self.won = 0
        """Times that this replica became the leader, since it was started."""
        self._silent_until = clock.now() + config.silence
        self.prevotes: set[int] | None = None
        """Who has granted a pre-vote, while this replica asks for them."""

    def hear_leader(self) -> None:
        self.heard = self._clock.now()
        # A pre-vote won from now on would depose a leader that this node has just heard.
        self.prevotes = None

    def _sticky(self) -> bool:
        """Whether a leader was heard so recently that it may hold a lease: then no vote is given."""
        now, calm = self._clock.now(), self._config.election_min
        if self._group.leads():
            return now < self._group.contact() + calm
        return now < self.heard + calm or now < self._silent_until

    def _majority(self, count: int) -> bool:
        return count > len(self._group.voters) // 2

    def _may_stand(self) -> bool:
        group, log = self._group, self._group.log
        return group.core.votes() and (log.last_term, log.last_index) >= self._floor and not group.lost.here

    # -- standing

    def stand(self) -> None:
        """No leader was heard for an election time-out: ask whether an election would be won."""
        core, log = self._group.core, self._group.log
        core.step_down()
        core.postpone_election()
        self.prevotes = None
        if not self._may_stand():
            return
        self.prevotes = {self._group.node}
        if self._majority(1):
            self.campaign(transfer=False)
            return
        message = [self._group.group, Type.PREVOTE, core.term() + 1, log.last_index, log.last_term]
        for peer in core.peers():
            self._outbox.send(peer, message)

    def campaign(self, *, transfer: bool) -> None:
        self.prevotes = None
        for peer, request in self._group.core.campaign():
            fields = (request["term"], request["last_log_index"], request["last_log_term"], transfer)
            self._outbox.send_when_durable(peer, [self._group.group, Type.VOTE, *fields])
        self._group.observe()

    # -- messages

    def receive(self, peer: int, kind: int, fields: list[Any]) -> None:
        if kind == Type.PREVOTE:
            self._on_prevote(peer, *fields)
        elif kind == Type.PREVOTE_REPLY:
            self._on_prevote_reply(peer, *fields)
        elif kind == Type.VOTE:
            self._on_vote(peer, *fields)
        elif kind == Type.VOTE_REPLY:
            self._on_vote_reply(peer, *fields)
        elif kind == Type.TIMEOUT_NOW:
            self._on_timeout_now(peer, *fields)

    def _on_prevote(self, peer: int, term: int, last_index: int, last_term: int) -> None:
        core = self._group.core
        granted = term > core.term() and self._may_elect(last_term, last_index) and not self._sticky()
        self._outbox.send_when_durable(peer, [self._group.group, Type.PREVOTE_REPLY, term, granted, core.term()])

    def _may_elect(self, last_term: int, last_index: int) -> bool:
        log = self._group.log
        least = max((log.last_term, log.last_index), self._floor)
        return (last_term, last_index) >= least and not self._group.lost.here

    def _on_prevote_reply(self, peer: int, term: int, granted: bool, own_term: int) -> None:
        core = self._group.core
        if own_term > core.term():
            self._group.adopt(own_term)
        elif granted and self.prevotes is not None and term == core.term() + 1 and peer in core.voters():
            self.prevotes.add(peer)
            if self._majority(len(self.prevotes)):
                self.campaign(transfer=False)

    def _on_vote(self, peer: int, term: int, last_index: int, last_term: int, transfer: bool) -> None:
        core = self._group.core
        if term < core.term():
            self._outbox.send_when_durable(peer, [self._group.group, Type.STALE, core.term()])
        elif transfer or not self._sticky():
            if not self._may_elect(last_term, last_index):
                core.adopt_term(term)
            elif core.receive_vote_request(peer, term, last_index, last_term):
                self._outbox.send_when_durable(peer, [self._group.group, Type.VOTE_REPLY, term])
            self._group.observe()

    def _on_vote_reply(self, peer: int, term: int) -> None:
        if self._group.core.role() == CANDIDATE:
            self._group.core.receive_vote(peer, term)

    def _on_timeout_now(self, peer: int, term: int) -> None:
        core = self._group.core
        if term == core.term() and peer == core.leader() and core.role() == FOLLOWER and self._may_stand():
            self.campaign(transfer=True)
