"""Faults planted in real processes are those that the simulator notices, and nothing of them is left behind."""

from __future__ import annotations

import pytest

from faults.process.planted import PLANTED, VARIABLE, environment, in_place, main
from faults.sim.mutants import NOTICED_BY, Mutant, find
from faults.sim.run import run


def parts(fault: str) -> list[Mutant]:
    return [find(name) for name in PLANTED[fault]]


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_planted_fault_replaces_its_safeguards_and_only_for_a_while(fault: str) -> None:
    patches = [patch for mutant in parts(fault) for patch in mutant.patches]
    before = [getattr(target, name) for target, name, _ in patches]
    assert patches
    with in_place(fault):
        for target, name, value in patches:
            assert getattr(target, name) is value
    assert [getattr(target, name) for target, name, _ in patches] == before


@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_a_simulated_cluster_of_such_nodes_is_found_guilty(fault: str) -> None:
    mutant = parts(fault)[0]
    storm = mutant.storm(NOTICED_BY[mutant.name])
    with in_place(fault):
        assert run(storm).problems
    assert run(storm).passed


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
        assert all(fault in error for fault in PLANTED)
    with pytest.raises(KeyError):
        environment("no such fault")
