"""Readers of jaxprs and of the closures of optax transformations."""
