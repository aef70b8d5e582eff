"""The doors of a node: what they share (its port, turns, budgets, counters), and beside it one package per protocol."""
