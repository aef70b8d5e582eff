"""What a node finds wrong with itself: kept for operators and monitors, logged when it comes and goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from raftkv.api.status import Problem
from raftkv.node.replicas import Replicas

log = logging.getLogger(__name__)

Source = Callable[[], Iterable[Problem]]


class Problems:
    """What ``sources`` had to say at the last look. A source is cheap: it is asked every second."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self.current: tuple[Problem, ...] = ()

    def add(self, source: Source) -> None:
        """Ask ``source`` too."""
        self._sources.append(source)

    def look(self) -> None:
        """Ask all sources."""
        found = tuple(problem for source in self._sources for problem in source())
        before = {(problem.kind, problem.group, problem.node): problem for problem in self.current}
        for problem in found:
            if before.pop((problem.kind, problem.group, problem.node), None) is None:
                log.warning("%s: %s", problem.kind, problem.text)
        for problem in before.values():
            log.warning("%s is over: %s", problem.kind, problem.text)
        self.current = found


def lost_entries(replicas: Replicas) -> Iterator[Problem]:
    """Replicas that have lost entries which they had acknowledged: those here, and those of groups led here."""
    for group in replicas.all():
        status = group.status()
        lost = [group.node] if status.lost else status.data_loss
        for node in lost:
            text = (
                f"node {node} has lost entries of group {group.group} that it had acknowledged: it does not count there"
            )
            yield Problem("lost_entries", f"{text} until it is replaced", group.group, node)
