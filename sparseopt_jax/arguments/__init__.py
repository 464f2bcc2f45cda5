"""Arguments of callers: checks, equality of settings, missing extras."""
