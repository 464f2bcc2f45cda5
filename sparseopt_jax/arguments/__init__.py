"""What callers pass: checks, equality of settings, missing extras."""
