"""State machines, pure: what a replica's state becomes by its log, and nothing else.

They are loaded when they are first used: a client needs the operations only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftkv.store.operations import ABSENT_VERSION, ANY_VERSION, Kind, Mode, Op, Result

if TYPE_CHECKING:
    from raftkv.store.meta import MetaStore
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

_LAZY = {
    "MetaStore": "raftkv.store.meta",
    "SlotState": "raftkv.store.slot",
    "Stats": "raftkv.store.records",
    "Store": "raftkv.store.records",
}


def __getattr__(name: str) -> Any:
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module 'raftkv.store' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
