"""raftkv: a strongly consistent, sharded, replicated key-value store.

The names of the client are loaded when they are first used, so that ``import raftkv`` is quick and a node does not
load a client.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any

from raftkv.errors import (
    BatchError,
    CodecError,
    Compacted,
    ConditionFailed,
    ConfigError,
    CounterOverflow,
    CrossSlot,
    DeadlineExceeded,
    InvalidArgument,
    NoSpace,
    NotANumber,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    RaftKVError,
    SessionExpired,
    SlowConsumer,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UsageError,
    WrongCluster,
    WrongVersion,
)

if TYPE_CHECKING:
    from raftkv import codecs as codecs
    from raftkv.client.aio import AsyncClient
    from raftkv.client.arguments import slot_of
    from raftkv.client.retry import RetryPolicy
    from raftkv.client.sync import Client
    from raftkv.client.tls import TLS
    from raftkv.client.transaction import AsyncTransaction, Transaction
    from raftkv.client.types import (
        ABSENT,
        AppendResult,
        CasResult,
        Consistency,
        EndpointStatus,
        Record,
        TransactionResult,
        WatchEvent,
        WriteResult,
    )
    from raftkv.client.watch import AsyncWatch, Watch

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "TLS",
    "AppendResult",
    "AsyncClient",
    "AsyncTransaction",
    "AsyncWatch",
    "BatchError",
    "CasResult",
    "Client",
    "CodecError",
    "Compacted",
    "ConditionFailed",
    "ConfigError",
    "Consistency",
    "CounterOverflow",
    "CrossSlot",
    "DeadlineExceeded",
    "EndpointStatus",
    "InvalidArgument",
    "NoSpace",
    "NotANumber",
    "NotApplied",
    "OutcomeUnknown",
    "Overloaded",
    "PermissionDenied",
    "RaftKVError",
    "Record",
    "RetryPolicy",
    "SessionExpired",
    "SlowConsumer",
    "TooLarge",
    "Transaction",
    "TransactionResult",
    "Unauthenticated",
    "Unavailable",
    "UsageError",
    "Watch",
    "WatchEvent",
    "WriteResult",
    "WrongCluster",
    "WrongVersion",
    "__version__",
    "codecs",
    "slot_of",
]

_LAZY = {
    "ABSENT": "raftkv.client.types",
    "AppendResult": "raftkv.client.types",
    "AsyncClient": "raftkv.client.aio",
    "AsyncTransaction": "raftkv.client.transaction",
    "AsyncWatch": "raftkv.client.watch",
    "CasResult": "raftkv.client.types",
    "Client": "raftkv.client.sync",
    "Consistency": "raftkv.client.types",
    "EndpointStatus": "raftkv.client.types",
    "Record": "raftkv.client.types",
    "RetryPolicy": "raftkv.client.retry",
    "TLS": "raftkv.client.tls",
    "Transaction": "raftkv.client.transaction",
    "TransactionResult": "raftkv.client.types",
    "Watch": "raftkv.client.watch",
    "WatchEvent": "raftkv.client.types",
    "WriteResult": "raftkv.client.types",
    "slot_of": "raftkv.client.arguments",
}


def __getattr__(name: str) -> Any:
    home = _LAZY.get(name)
    from importlib import import_module

    if name == "codecs":
        return import_module("raftkv.codecs")
    if home is None:
        raise AttributeError(f"module 'raftkv' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


# gRPC reads its settings as it is loaded, and any module of raftkv may load it. The environment may choose otherwise.
_GRPC_SETTINGS = {
    # Its own pollers wait for sockets, not its event engine: that passes each event from thread to thread, which takes
    # a third of a stream's round trips per second away.
    "GRPC_EXPERIMENTS": "-event_engine_listener,-event_engine_client",
    # What it does at a fork otherwise kills the children of a process that has a client open.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # What it has to say of connections, raftkv's errors and logs say in their own words.
    "GRPC_VERBOSITY": "NONE",
}
for _name, _value in _GRPC_SETTINGS.items():
    os.environ.setdefault(_name, _value)


@atexit.register
def _close_clients() -> None:
    # Registered here, so that what the program registers can still use its clients: the last one is called first.
    home = sys.modules.get("raftkv.client.sync")
    if home is not None:
        home.close_at_exit()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
