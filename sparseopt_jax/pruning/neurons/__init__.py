"""Neurons that do nothing: finding them in a model, and cutting them out."""
