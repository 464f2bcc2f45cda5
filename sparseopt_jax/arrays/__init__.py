"""Single arrays: selection, counting, units, sharding types; no pytrees, no optax."""
