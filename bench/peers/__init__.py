"""``python -m bench compare``: other stores measured as raftkv is, and by their own tools."""
