"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Container, Sequence


def table(heading: Sequence[str], lines: Sequence[Sequence[str]], numbers: Container[int]) -> str:
    """Without a last line feed; ``numbers``: the columns that are flush right."""
    rule = ["---:" if at in numbers else "---" for at in range(len(heading))]
    return "\n".join(f"| {' | '.join(map(escaped, line))} |" for line in [list(heading), rule, *lines])


def escaped(cell: str) -> str:
    """As one line that ends no cell."""
    return " ".join(cell.split()).replace("|", "\\|")
