"""Links between nodes: one connection per direction and pair, carrying the messages of all groups."""
