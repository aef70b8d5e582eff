"""What all tests share."""

from __future__ import annotations

import hypothesis

# The same examples on every run: a failure in CI is a failure at the desk.
hypothesis.settings.register_profile("raftkv", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("raftkv")
