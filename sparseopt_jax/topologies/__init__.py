"""Which weights are active, and how that changes."""
