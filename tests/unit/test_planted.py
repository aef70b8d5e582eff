"""Planted faults sit at public names, go without a trace, and those of real processes are among the simulator's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import faults.planted
from faults.planted.catalogue import PLANTED, find
from faults.planted.fault import PlantedFault, kind_of
from faults.planted.search import Lately, Sought
from faults.process.planted import OF_NODES, VARIABLE, environment, in_place, main
from faults.sim.nemesis import EFFECTS
from faults.sim.storm import KINDS, RUINOUS

each_fault = pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.name)


def test_planted_faults_are_told_apart_by_name() -> None:
    names = [fault.name for fault in PLANTED]
    assert len(set(names)) == len(names)
    assert [find(name) for name in names] == list(PLANTED)
    with pytest.raises(KeyError):
        find("no such fault")


# -- where they sit


@each_fault
def test_a_planted_fault_replaces_public_names(fault: PlantedFault) -> None:
    assert fault.patches
    assert [name for _, name, _ in fault.patches if name.startswith("_") and name != "__init__"] == []
    assert all(value is not getattr(target, name) for target, name, value in fault.patches)


@pytest.mark.parametrize("path", sorted(Path(faults.planted.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_planted_faults_know_nothing_private_of_the_product(path: Path) -> None:
    """So that what is inside of it may be renamed."""
    tree = ast.parse(path.read_text())
    private = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    ]
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert set(private) <= {"_replace"}, "named tuples have it"
    assert imported == []


@contextmanager
def unchanged(fault: PlantedFault) -> Iterator[None]:
    """All targets are the same before and after, no attribute more and none less."""

    def attributes() -> list[dict[str, Any]]:
        return [dict(vars(target)) for target, _, _ in fault.patches]

    before = attributes()
    yield
    for was, now in zip(before, attributes(), strict=True):
        assert now.keys() == was.keys()
        assert [name for name in was if now[name] is not was[name]] == []


@each_fault
def test_a_planted_fault_goes_without_a_trace_and_can_be_planted_again(fault: PlantedFault) -> None:
    for error in (None, ValueError, KeyboardInterrupt):
        with unchanged(fault):
            if error is None:
                with fault.in_place():
                    for target, name, value in fault.patches:
                        assert vars(target)[name] is value
            else:
                with pytest.raises(error), fault.in_place():
                    raise error


# -- their storms


@each_fault
def test_the_storm_of_a_planted_fault_has_what_its_profile_says(fault: PlantedFault) -> None:
    for seed in range(1, 20):
        storm = fault.storm(seed)
        assert storm == fault.storm(seed), "the same for ever"
        assert storm.seed == seed
        assert dict(storm.faults) == dict(fault.faults)
        assert set(storm.faults) <= set(KINDS) == set(EFFECTS)
        assert not storm.wild, "reads would be stale without any fault, and the fault pass for noticed"
        assert "wild clock" not in storm.faults
        assert not (storm.members and {*RUINOUS} & {*storm.faults})
        assert storm.replicas <= storm.nodes
        assert storm.workloads


# -- the search


def test_the_kind_of_a_problem_is_how_it_begins() -> None:
    assert kind_of("lease: n1 leads") == "lease"
    assert kind_of("history of r0: violation") == "history"
    assert find("no dedupe").notices("unique-set: element added twice")
    assert not find("no dedupe").notices("lease: n1 leads")


def test_what_noticed_a_fault_lately_is_remembered_and_may_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "planted.json"
    lately = Lately(path)
    assert lately.of("no dedupe") == 0
    lately.note(Sought("no dedupe", 3, 7, "unique-set: ..."))
    lately.note(Sought("no fsync", 40))
    assert (Lately(path).of("no dedupe"), Lately(path).of("no fsync")) == (7, 0)
    for damaged in ("", "[", "[]", '{"no dedupe": "x"}'):
        path.write_text(damaged)
        assert Lately(path).of("no dedupe") == 0
    Lately(tmp_path / "no folder" / "here" / "planted.json").note(Sought("no dedupe", 3, 7))


# -- on real processes


@pytest.mark.parametrize("name", sorted(OF_NODES))
def test_a_fault_of_processes_is_planted_only_for_a_while(name: str) -> None:
    patches = [patch for part in OF_NODES[name] for patch in find(part).patches]
    before = [getattr(target, attribute) for target, attribute, _ in patches]
    assert patches
    with in_place(name):
        for target, attribute, value in patches:
            assert getattr(target, attribute) is value
    assert [getattr(target, attribute) for target, attribute, _ in patches] == before


def test_an_unknown_fault_is_told_and_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (None, "", "no such fault"):
        if name is None:
            monkeypatch.delenv(VARIABLE, raising=False)
        else:
            monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert VARIABLE in error
        assert all(fault in error for fault in OF_NODES)
    with pytest.raises(KeyError):
        environment("no such fault")
