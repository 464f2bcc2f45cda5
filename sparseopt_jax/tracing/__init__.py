"""Reading jaxprs and the closures of optax transformations."""
