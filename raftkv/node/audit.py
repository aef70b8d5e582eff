"""The audit trail of a node: who did what, from where, and with what outcome, a line of JSON each.

It is ``audit.log`` in the data folder, and rotates as the log does. Lines that strangers can cause are limited as those
of the log are.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from raftkv.log_limit import LogLimit, limited
from raftkv.node.logs import AUDIT_LOG, LogFile

if TYPE_CHECKING:
    from raftkv.clock import Clock
    from shards.map import ShardMap

MAX_BYTES: Final = 8 * 1024 * 1024
BACKUPS: Final = 3
MAX_LINE: Final = 4096
"""Characters of the arguments in a line; longer ones are cut."""
MAX_TAIL: Final = 1000
_MAX_TAIL_BYTES: Final = 1024 * 1024
_FIELDS: Final = "audit_fields"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        # A line about lines, as those that were left out, has no fields.
        fields = getattr(record, _FIELDS, None) or {"action": "note", "text": record.getMessage()}
        return json.dumps({"time": time, **fields}, ensure_ascii=True)


class Audit:
    """``folder``: of the node's data. Raises OSError if the file cannot be written."""

    def __init__(self, folder: str | Path, clock: Clock) -> None:
        self.path = Path(folder) / AUDIT_LOG
        self._limit = LogLimit(clock.now)
        self._file = LogFile(str(self.path), MAX_BYTES, BACKUPS)
        self._file.setFormatter(_Json())

    def write(self, action: str, outcome: str, *, source: str = "", **fields: Any) -> None:
        """A line. ``source``: who can cause any number of them, if somebody can."""
        arguments = fields.get("arguments")
        if arguments and len(json.dumps(arguments)) > MAX_LINE:
            fields["arguments"] = {"cut": json.dumps(arguments)[:MAX_LINE]}
        record = logging.LogRecord("raftkv.audit", logging.INFO, __file__, 0, f"{action}: {outcome}", None, None)
        setattr(record, _FIELDS, {**fields, "action": action, "outcome": outcome})
        if source:
            record.__dict__.update(limited(source))
        self._emit(self._limit.take(record))

    def sweep(self) -> None:
        """Say what was left out, from time to time."""
        self._emit(self._limit.due())

    def close(self) -> None:
        """Say the rest."""
        self._emit(self._limit.rest())
        self._file.close()

    def tail(self, lines: int) -> list[str]:
        """The latest lines, the oldest first; blocks. Raises OSError."""
        found: deque[str] = deque(maxlen=min(lines, MAX_TAIL))
        for path in (self.path.with_name(f"{self.path.name}.1"), self.path):
            if path.exists():
                with path.open("rb") as file:
                    size = file.seek(0, 2)
                    file.seek(max(0, size - _MAX_TAIL_BYTES))
                    text = file.read().decode(errors="replace")
                # The first one may be cut.
                found.extend(text.splitlines()[1 if size > _MAX_TAIL_BYTES else 0 :])
        return list(found)

    def _emit(self, records: list[logging.LogRecord]) -> None:
        for record in records:
            self._file.handle(record)


def place(peer: str) -> str:
    """The address, for people, of what gRPC calls ``peer``."""
    kind, colon, rest = unquote(peer).partition(":")
    return rest if colon and kind in ("ipv4", "ipv6") else peer


def membership(before: ShardMap, after: ShardMap) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Changes of members from one map to a later one: actions and their arguments."""
    old, new = ({node.id: node for node in one.nodes} for one in (before, after))
    for node in sorted(new.keys() - old.keys()):
        yield "node_joined", {"node": node, "address": new[node].address, "peer_address": new[node].peer_address}
    for node in sorted(set(after.removed) - set(before.removed)):
        yield "node_removed", {"node": node}
    groups = {group.id: (group.voters, group.learners) for group in before.groups}
    for group in after.groups:
        voters, learners = groups.pop(group.id, ((), ()))
        if set(voters) != set(group.voters) or set(learners) != set(group.learners):
            yield (
                "members_changed",
                {"group": group.id, "voters": list(group.voters), "learners": list(group.learners)},
            )
    for gone in sorted(groups):
        yield "group_removed", {"group": gone}
