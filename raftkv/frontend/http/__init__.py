"""Metrics and probes of a node over HTTP."""
