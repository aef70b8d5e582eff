"""The gRPC services of a node, and the translation between their messages and operations."""
