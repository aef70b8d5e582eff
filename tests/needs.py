"""What a machine may lack: then a test is skipped with the reason, but not where everything has to be there."""

from __future__ import annotations

import os

import pytest

from faults.process.toxiproxy import find_server


def need(found: bool, reason: str) -> None:
    """Go on if ``found``; else skip the test, or fail it where tools are required."""
    if found:
        return
    if os.environ.get("CI", "").lower() not in ("", "0", "false") or os.environ.get("RAFTKV_REQUIRE_TOOLS") == "1":
        pytest.fail(f"{reason}; tools are required here", pytrace=False)
    pytest.skip(reason)


def toxiproxy() -> str:
    """The program of Toxiproxy's server; else as :func:`need`."""
    found = find_server()
    need(found is not None, "no Toxiproxy: make toxiproxy")
    assert found is not None
    return found
