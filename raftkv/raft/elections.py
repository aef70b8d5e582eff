"""Elections of one replica: who may stand, who gets a vote, and when none is given.

A candidate asks the voters that its own log names, and counts only their votes and pre-votes. A voter grants one to any
node that asks: a voter may not know yet that the candidate, or it itself, is one (Ongaro, dissertation, 4.1). A removed
node that goes on asking is kept quiet by pre-votes and by stickiness (4.2.3).
"""

from __future__ import annotations

from typing import Any

from raftkv.raft.config import RaftConfig
from raftkv.raft.core import CANDIDATE, FOLLOWER, Core
from raftkv.raft.log import GroupLog
from raftkv.raft.lost import LostEntries
from raftkv.raft.messages import Type
from raftkv.raft.ready import Outputs


class Elections:
    """``floor``: term and index of the last entry of a log that this node held before its replica was dropped.

    It gives votes as if it still held that log: what it acknowledged then may be committed. A replica that has ``lost``
    entries neither votes nor stands.
    """

    def __init__(
        self,
        group: int,
        node: int,
        core: Core,
        log: GroupLog,
        lost: LostEntries,
        outputs: Outputs,
        config: RaftConfig,
        floor: tuple[int, int],
    ) -> None:
        self._group = group
        self._node = node
        self._core = core
        self._log = log
        self._lost = lost
        self._outputs = outputs
        self._config = config
        self._floor = floor
        self.heard = float("-inf")
        """When a leader was heard last."""
        self.won = 0
        """Times that this replica became the leader, since it was started."""
        self._silent_until = core.now + config.silence
        self.prevotes: set[int] | None = None
        """Who has granted a pre-vote, while this replica asks for them."""

    def hear_leader(self) -> None:
        self.heard = self._core.now
        # A pre-vote won from now on would depose a leader that this node has just heard.
        self.prevotes = None

    def _sticky(self, contact: float | None) -> bool:
        """Whether a leader was heard so recently that it may hold a lease: then no vote is given."""
        now, calm = self._core.now, self._config.election_min
        if contact is not None:
            return now < contact + calm
        return now < self.heard + calm or now < self._silent_until

    def _majority(self, count: int) -> bool:
        return count > len(self._core.voters()) // 2

    def _may_stand(self) -> bool:
        log = self._log
        return self._core.votes() and (log.last_term, log.last_index) >= self._floor and not self._lost.here

    # -- standing

    def stand(self) -> None:
        """No leader was heard for an election time-out: ask whether an election would be won."""
        core, log = self._core, self._log
        core.step_down()
        core.postpone_election()
        self.prevotes = None
        if not self._may_stand():
            return
        self.prevotes = {self._node}
        if self._majority(1):
            self.campaign(transfer=False)
            return
        message = [self._group, Type.PREVOTE, core.term() + 1, log.last_index, log.last_term]
        for peer in core.peers():
            self._outputs.send(peer, message)

    def campaign(self, *, transfer: bool) -> None:
        self.prevotes = None
        for peer, request in self._core.campaign():
            fields = (request["term"], request["last_log_index"], request["last_log_term"], transfer)
            self._outputs.send(peer, [self._group, Type.VOTE, *fields])

    # -- messages

    def receive(self, peer: int, kind: int, fields: list[Any], contact: float | None) -> None:
        """``contact``: on a leader, the latest moment after which a majority has heard it."""
        if kind == Type.PREVOTE:
            self._on_prevote(peer, self._sticky(contact), *fields)
        elif kind == Type.PREVOTE_REPLY:
            self._on_prevote_reply(peer, *fields)
        elif kind == Type.VOTE:
            self._on_vote(peer, self._sticky(contact), *fields)
        elif kind == Type.VOTE_REPLY:
            self._on_vote_reply(peer, *fields)
        elif kind == Type.TIMEOUT_NOW:
            self._on_timeout_now(peer, *fields)

    def _on_prevote(self, peer: int, sticky: bool, term: int, last_index: int, last_term: int) -> None:
        core = self._core
        granted = term > core.term() and self._may_elect(last_term, last_index) and not sticky
        self._outputs.send(peer, [self._group, Type.PREVOTE_REPLY, term, granted, core.term()])

    def _may_elect(self, last_term: int, last_index: int) -> bool:
        log = self._log
        least = max((log.last_term, log.last_index), self._floor)
        return (last_term, last_index) >= least and not self._lost.here

    def _on_prevote_reply(self, peer: int, term: int, granted: bool, own_term: int) -> None:
        core = self._core
        if own_term > core.term():
            core.adopt_term(own_term)
        elif granted and self.prevotes is not None and term == core.term() + 1 and peer in core.voters():
            self.prevotes.add(peer)
            if self._majority(len(self.prevotes)):
                self.campaign(transfer=False)

    def _on_vote(self, peer: int, sticky: bool, term: int, last_index: int, last_term: int, transfer: bool) -> None:
        core = self._core
        if term < core.term():
            self._outputs.send(peer, [self._group, Type.STALE, core.term()])
        elif transfer or not sticky:
            if not self._may_elect(last_term, last_index):
                core.adopt_term(term)
            elif core.receive_vote_request(peer, term, last_index, last_term):
                self._outputs.send(peer, [self._group, Type.VOTE_REPLY, term])

    def _on_vote_reply(self, peer: int, term: int) -> None:
        if self._core.role() == CANDIDATE:
            self._core.receive_vote(peer, term)

    def _on_timeout_now(self, peer: int, term: int) -> None:
        core = self._core
        if term == core.term() and peer == core.leader() and core.role() == FOLLOWER and self._may_stand():
            self.campaign(transfer=True)
