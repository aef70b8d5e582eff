"""Transcripts of the consensus: the same inputs lead to the same values, and these are what one reads there."""

from pathlib import Path

import pytest

from tests.transcripts.driver import played

TRANSCRIPTS = sorted((Path(__file__).parents[1] / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_comes_out_as_it_is_written(path: Path) -> None:
    """After an intended change: ``python -m tests.transcripts --write``, and read the difference."""
    text = path.read_text()
    assert played(text.splitlines()) == text


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 12
