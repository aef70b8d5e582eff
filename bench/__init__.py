"""Measurements of raftkv."""
