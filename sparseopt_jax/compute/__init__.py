"""Computation with the active blocks of compact kernels."""
