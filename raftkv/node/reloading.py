"""A configuration that is read again while the node runs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from msgspec import to_builtins

from raftkv.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from raftkv.clock import Clock
    from raftkv.node.config import NodeConfig

log = logging.getLogger(__name__)

RELOADED: Final = (
    "node.log_level",
    "node.log_format",
    "node.log_file",
    "node.log_max_bytes",
    "node.log_backups",
    "node.reads",
    "node.memory",
    "dial",
)
"""All other keys need a restart."""


PAUSE: Final = 1.0
"""Least seconds between two reloads, so that repeated requests do not keep the node from its work."""


class Reloading:
    """``load`` reads the configuration anew, or raises ConfigError. ``take`` each get what is in use from then on."""

    def __init__(
        self,
        config: NodeConfig,
        load: Callable[[], NodeConfig],
        take: tuple[Callable[[NodeConfig], None], ...],
        clock: Clock,
    ) -> None:
        self._started = config
        self._used = config
        self._load = load
        self._take = take
        self._clock = clock
        self._resting = False
        self._asked = False

    def ask(self) -> None:
        """Run, at once or when the pause after the run before is over."""
        if self._resting:
            self._asked = True
            return
        self._resting, self._asked = True, False
        self.run()
        self._clock.call_later(PAUSE, self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self._asked:
            self.ask()

    def run(self) -> None:
        """Take over what has changed; a configuration that is wrong changes nothing. Never raises."""
        try:
            config = self._load()
            for take in self._take:
                take(config)
        except ConfigError as problem:
            log.warning("configuration not reloaded, keeping the old one: %s", problem)
            return
        except Exception:
            log.exception("configuration not reloaded")
            return
        changed = [key for key in _changed(self._used, config) if key in RELOADED]
        waiting = [key for key in _changed(self._started, config) if key not in RELOADED]
        self._used = config
        log.info("configuration reloaded; changed: %s", ", ".join(changed) or "nothing")
        if waiting:
            log.warning("changed keys that need a restart of the node: %s", ", ".join(waiting))


def _changed(before: NodeConfig, after: NodeConfig) -> list[str]:
    old, new = flat(before), flat(after)
    return [key for key in new if old[key] != new[key]]


def flat(config: NodeConfig) -> dict[str, Any]:
    """The values of ``config`` by their names in docs/operations.md."""
    found: dict[str, Any] = {}
    for name, value in to_builtins(config).items():
        if name in ("dial", "nodes"):
            found[name] = value
        else:
            found |= {f"{name}.{key}": entry for key, entry in value.items()}
    return found
