"""Guarantee: a test whose tool is missing is skipped with the reason, and fails where everything has to be there."""

from __future__ import annotations

import pytest

from tests.needs import need


@pytest.fixture(autouse=True)
def neither(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "RAFTKV_REQUIRE_TOOLS"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_there_is_used() -> None:
    need(True, "there is no hammer")


def test_what_is_missing_is_a_reason_to_skip() -> None:
    with pytest.raises(pytest.skip.Exception, match="there is no hammer"):
        need(False, "there is no hammer")


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("CI", "1"), ("RAFTKV_REQUIRE_TOOLS", "1")])
def test_where_tools_are_required_it_is_a_failure(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(pytest.fail.Exception, match="there is no hammer; tools are required here"):
        need(False, "there is no hammer")


@pytest.mark.parametrize(("name", "value"), [("CI", ""), ("CI", "false"), ("RAFTKV_REQUIRE_TOOLS", "0")])
def test_where_they_are_expressly_not_required_it_is_not(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(pytest.skip.Exception):
        need(False, "there is no hammer")
