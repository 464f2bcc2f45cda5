"""Removal of dead neurons: find them in a model and cut them out."""
