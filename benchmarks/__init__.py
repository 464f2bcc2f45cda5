"""Measurements of the library's speed and memory."""
