"""Guarantee: errors are what Python programs take them for, and survive pickling and copying as they are."""

from __future__ import annotations

import asyncio
import copy
import importlib
import pickle  # noqa: TID251 - what multiprocessing does with an error
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftkv
from raftkv.api.failures import error_of, failure_of
from raftkv.cli.common import Exit
from raftkv.cli.main import run
from raftkv.client.transport import TransportError
from raftkv.commands.results import Result
from raftkv.errors import OUTCOMES, ConditionFailed, CorruptData, RaftKVError
from raftkv.peer.hello import HelloRefused

PACKAGES = ("raftkv", "shards", "faults")
SAMPLES: dict[type[BaseException], BaseException] = {
    ConditionFailed: ConditionFailed("no", 7, key=b"k", expected=5),
    CorruptData: CorruptData("/data/wal", 17, "a torn record"),
    HelloRefused: HelloRefused(1, "why"),
    TransportError: TransportError(Result(7, detail="nobody leads")),
}


def _heirs(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for heir in kind.__subclasses__():
        yield heir
        yield from _heirs(heir)


def own_errors() -> list[type[BaseException]]:
    """All exceptions of the packages."""
    for name in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    own = {kind for kind in _heirs(BaseException) if kind.__module__.partition(".")[0] in PACKAGES}
    return sorted(own, key=lambda kind: (kind.__module__, kind.__qualname__))


def everything(error: BaseException) -> tuple[Any, ...]:
    return type(error), str(error), error.args, vars(error)


def test_every_error_survives_pickling_and_copying() -> None:
    kinds = own_errors()
    assert len(kinds) > 40
    for kind in kinds:
        error = SAMPLES.get(kind) or kind("why")
        error.add_note("said later")
        for again in (
            *(pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
            copy.copy(error),
            copy.deepcopy(error),
        ):
            assert everything(again) == everything(error)


def test_a_pickled_error_raises_like_a_new_one() -> None:
    for kind in raftkv.Unavailable, raftkv.DeadlineExceeded:
        again = pickle.loads(pickle.dumps(kind("why")))
        with pytest.raises(TimeoutError, match="^why$") as caught:
            raise again
        assert caught.value is again


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (raftkv.DeadlineExceeded, {TimeoutError}),
        (raftkv.Unavailable, {ConnectionError, TimeoutError}),
        (raftkv.Overloaded, {TimeoutError}),
        (raftkv.InvalidArgument, {ValueError}),
        (raftkv.TooLarge, {ValueError}),
        (raftkv.UsageError, {RuntimeError}),
        (raftkv.ConditionFailed, set()),
        (raftkv.NoSpace, set()),
        (raftkv.WrongCluster, set()),
        (raftkv.WrongVersion, set()),
        (raftkv.OutcomeUnknown, set()),
        (raftkv.SessionExpired, set()),
        (raftkv.NotApplied, set()),
        (raftkv.ConfigError, set()),
    ],
)
def test_errors_are_built_in_ones_where_they_mean_that(kind: type[RaftKVError], bases: set[type[Exception]]) -> None:
    builtin = {TimeoutError, ConnectionError, ValueError, TypeError, KeyError, RuntimeError}
    assert {base for base in builtin if issubclass(kind, base)} == bases
    for arguments in ((), ("why",), (2, "why"), (2, "why", "file")):
        error = kind(*arguments[:1]) if kind is ConditionFailed else kind(*arguments)
        assert "Errno" not in str(error)
    assert (str(kind()), str(kind("why"))) == ("", "why")


@pytest.mark.parametrize("kind", {outcome.error: None for outcome in OUTCOMES.values()})
def test_what_travels_between_nodes_keeps_its_message(kind: type[RaftKVError]) -> None:
    error = SAMPLES.get(kind) or kind("why")
    assert isinstance(error, RaftKVError)
    result = failure_of(error)
    assert str(error_of(result)) == str(error)
    assert result.version == (7 if kind is ConditionFailed else 0)


# -- what catches built-in errors for other reasons


def test_no_node_is_no_trouble_with_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Port 1 of the loopback interface: nobody listens there."""
    nobody = ["--endpoints", "127.0.0.1:1", "--timeout", "0.3"]
    for command in (["get", "k"], ["put", "k", "v"], ["dump"], ["dump", "--out", str(tmp_path / "out")]):
        assert run([*command, *nobody]) == Exit.UNREACHABLE, command
        told = capsys.readouterr().err
        assert told.startswith("raftkv: no result after")
        assert "cannot" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_time_limit_of_the_caller_is_told_from_the_clients_own() -> None:
    async def main() -> None:
        async with raftkv.AsyncClient("127.0.0.1:1", timeout=60.0) as kv:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05):
                    await kv.get("k")
            assert not isinstance(caught.value, RaftKVError)
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(60):
                    await kv.get("k", timeout=0.05)
            assert isinstance(caught.value, raftkv.Unavailable)

    asyncio.run(main())
