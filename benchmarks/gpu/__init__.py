"""Measurements on an accelerator, in one call of a few minutes."""
