"""What a node's log has of the records that a test caught."""

from __future__ import annotations

import pytest

from raftkv.log_limit import LogLimit


def written(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of one moment: no minute passes between the first record and the last."""
    limit = LogLimit(lambda: 0.0)
    return [one.getMessage() for record in caplog.records for one in limit.take(record)]
