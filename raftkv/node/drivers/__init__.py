"""What the leader of the meta group, or of a group, drives on its own: in steps that any later leader may repeat."""
