"""The chaos suite on real processes: nodes, links through Toxiproxy, kill -9, and checked histories."""
