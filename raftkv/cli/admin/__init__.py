"""The command ``raftkv-admin``: what operators ask of a cluster, and what they change."""
