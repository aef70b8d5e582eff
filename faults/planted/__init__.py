"""Planted faults: each switches one safeguard off, and the simulator has to notice.

They sit at ports (files, messages, what a replica is made of), at values (commands, snapshots, time-outs) and at rules
that are public functions of values, and use public names only: what the product is inside may change.
"""
