"""The search for a storm that notices a planted fault: in the order of seeds, the one that noticed it lately first."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from faults.planted.catalogue import find
from faults.planted.fault import PlantedFault
from faults.sim.run import run
from faults.sim.soak import pool

CACHE: Final = Path(".cache/planted.json")
"""Planted fault -> the seed that noticed it last. May be absent: it only saves time."""

MOST: Final = 40
"""Seeds that are tried for one fault."""


@dataclass(frozen=True, slots=True)
class Sought:
    """How the search for one fault ended. ``tried``: storms run with it. ``seed``: the one that noticed it, 0 = none.
    ``problem``: what it said; else the last thing that a storm said, which is not what the fault should show as."""

    name: str
    tried: int
    seed: int = 0
    problem: str = ""


def search(fault: PlantedFault, most: int = MOST, lately: int = 0) -> Sought:
    """Run storms with this fault until one notices it, from its first seed on. ``lately``: a seed that goes before.

    Raises AssertionError if that storm breaks a promise without the fault too: then it has noticed something else.
    """
    said, tried = "", 0
    seeds = range(fault.first, fault.first + most)
    for tried, seed in enumerate(dict.fromkeys([*([lately] if lately else []), *seeds]), 1):
        storm = fault.storm(seed)
        with fault.in_place():
            problems = run(storm, whole=False).problems
        if not problems:
            continue
        said = problems[0]
        if fault.notices(said):
            with fault.in_place(planted=False):
                sound = run(storm)
            assert sound.passed, f"{fault.name}, seed {seed}, fails unplanted: {sound.problems[0]}"
            return Sought(fault.name, tried, seed, said)
    return Sought(fault.name, tried, problem=said)


def _search(name: str, most: int, lately: int) -> Sought:
    return search(find(name), most, lately)


def search_all(names: Sequence[str], most: int, jobs: int) -> Iterator[Sought]:
    """Search for all of them, ``jobs`` at a time; what ends first comes first."""
    lately = Lately()
    with pool(jobs) as workers:
        for one in as_completed([workers.submit(_search, name, most, lately.of(name)) for name in names]):
            lately.note(one.result())
            yield one.result()


class Lately:
    """The seeds that noticed faults last, in ``path``."""

    def __init__(self, path: Path = CACHE) -> None:
        self._path = path

    def of(self, name: str) -> int:
        """0 = none."""
        return self._read().get(name, 0)

    def note(self, found: Sought) -> None:
        """Remember what was found, beside what others have noted; a file that cannot be written costs only time."""
        seeds = self._read()
        if found.seed and seeds.get(found.name) != found.seed:
            seeds[found.name] = found.seed
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                self._path.write_text(json.dumps(seeds, indent=1, sort_keys=True) + "\n")

    def _read(self) -> dict[str, int]:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(self._path.read_text())
            if isinstance(known, dict):
                return {name: seed for name, seed in known.items() if type(seed) is int and seed > 0}
        return {}
