"""What is wrong with a history: pure, and the same for simulated and real clusters."""
