"""Guarantee: each pull request runs what CONTRIBUTING.md says must pass, on the oldest Python that is supported."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_the_workflow_runs_the_tests_and_the_checks() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    (job,) = yaml.safe_load(text)["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["sh .ci/run", "make check"]
    (version,) = [step["with"]["python-version"] for step in job["steps"] if "with" in step]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == f">={version}"


def test_the_workflow_may_only_read() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    assert re.findall(r"\$\{\{ *secrets", text) == []
