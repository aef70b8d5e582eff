"""State machines, pure: what a replica's state becomes by its log, and nothing else."""
