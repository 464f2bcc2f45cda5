"""The best of an array, by a stable sort."""

import numpy as np


def highest(scores, k):
    """The k highest scores; of equal ones the first."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-np.ravel(scores), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


def largest(weights, k):
    """The k weights of the largest magnitude."""
    return highest(np.abs(weights), k)
