"""Pytrees of parameters: canonical paths, boxes, keys by name."""
