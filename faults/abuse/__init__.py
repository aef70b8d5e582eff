"""What one client, or one sick node, can do to all others: bounded, on loopback, measured from outside."""
