"""Nodes on this machine: their processes, ports, folders and configurations, and clusters of them."""
