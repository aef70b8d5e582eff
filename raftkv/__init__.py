"""raftkv: a strongly consistent, sharded, replicated key-value store.

The names of the client are loaded when they are first used, so that ``import raftkv`` is quick and a node does not
load a client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftkv.errors import (
    ConditionFailed,
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    RaftKVError,
    SessionExpired,
    TooLarge,
    Unavailable,
    UsageError,
    WrongCluster,
)

if TYPE_CHECKING:
    from raftkv.client.aio import AsyncClient
    from raftkv.client.arguments import slot_of
    from raftkv.client.sync import Client
    from raftkv.client.types import ABSENT, CasResult, Consistency, EndpointStatus, Record, WriteResult

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "AsyncClient",
    "CasResult",
    "Client",
    "ConditionFailed",
    "ConfigError",
    "Consistency",
    "DeadlineExceeded",
    "EndpointStatus",
    "InvalidArgument",
    "NoSpace",
    "NotApplied",
    "OutcomeUnknown",
    "Overloaded",
    "RaftKVError",
    "Record",
    "SessionExpired",
    "TooLarge",
    "Unavailable",
    "UsageError",
    "WriteResult",
    "WrongCluster",
    "__version__",
    "slot_of",
]

_LAZY = {
    "ABSENT": "raftkv.client.types",
    "AsyncClient": "raftkv.client.aio",
    "CasResult": "raftkv.client.types",
    "Client": "raftkv.client.sync",
    "Consistency": "raftkv.client.types",
    "EndpointStatus": "raftkv.client.types",
    "Record": "raftkv.client.types",
    "WriteResult": "raftkv.client.types",
    "slot_of": "raftkv.client.arguments",
}


def __getattr__(name: str) -> Any:
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module 'raftkv' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
