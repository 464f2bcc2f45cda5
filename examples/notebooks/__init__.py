"""Notebooks to read and run; ``python -m examples.notebooks`` executes them."""
