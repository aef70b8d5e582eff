"""Raft groups over PySyncObj. The rest of raftkv sees :class:`RaftGroup` and the ports that it needs."""

from raftkv.raft.config import RaftConfig
from raftkv.raft.group import RaftGroup
from raftkv.raft.log import BrokenInvariant
from raftkv.raft.membership import MembersView, PeerState
from raftkv.raft.ports import Outbox, StateMachine
from raftkv.raft.status import GroupStatus

__all__ = [
    "BrokenInvariant",
    "GroupStatus",
    "MembersView",
    "Outbox",
    "PeerState",
    "RaftConfig",
    "RaftGroup",
    "StateMachine",
]
