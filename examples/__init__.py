"""Programs that train sparse networks."""
