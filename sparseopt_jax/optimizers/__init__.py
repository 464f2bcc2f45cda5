"""Optimizers that know about sparsity, and ready-made sparse ones."""
