"""Reports of runs: what a run writes down (journal), what it came to (stats), and its page (writing)."""
