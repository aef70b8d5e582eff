"""Faults of clusters, simulated and real: whom they meet, what they do, for how long, and whether they took effect."""
