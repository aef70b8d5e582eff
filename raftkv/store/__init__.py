"""State machines, pure: what a replica's state becomes by its log, and nothing else."""

from raftkv.store.meta import MetaStore
from raftkv.store.operations import ABSENT_VERSION, ANY_VERSION, Kind, Mode, Op, Result
from raftkv.store.records import Stats, Store
from raftkv.store.slot import SlotState

__all__ = [
    "ABSENT_VERSION",
    "ANY_VERSION",
    "Kind",
    "MetaStore",
    "Mode",
    "Op",
    "Result",
    "SlotState",
    "Stats",
    "Store",
]
