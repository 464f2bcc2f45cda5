"""The best entries of an array, by a stable sort."""

import numpy as np


def highest(scores, k):
    """Return the k highest scores; ties by the lowest index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-np.ravel(scores), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def largest(weights, k):
    """Return the k weights of largest magnitude."""
    return highest(np.abs(weights), k)
