"""What clients do to a store while faults come, and what they are told: the same for simulated and real clusters."""
