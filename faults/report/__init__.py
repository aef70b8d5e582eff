"""Reports of runs: what a run writes down (journal), what it came to (figures), and its page (writing)."""
