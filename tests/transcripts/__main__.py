"""``python -m tests.transcripts``: names the transcripts that come out differently; ``--write`` writes them anew."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.transcripts.driver import played

if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("*.txt")):
        text = path.read_text()
        now = played(text.splitlines())
        if now != text:
            print(path.name)
            if "--write" in sys.argv:
                path.write_text(now)
