"""Where each library keeps the running statistics of Batch Normalization."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from sparseopt_jax.trees import paths

# Paths of the mean and the variance, relative to the normalisation.
_FLAX = ("mean", "var")
_HAIKU = ("~/mean_ema/average", "~/var_ema/average")
# In an Equinox `State`, they are the two unnamed parts of one entry.
_EQUINOX = ("0", "1")


class RunningStatistics(NamedTuple):
    """The statistics of one normalisation.

    Attributes:
      norm: path of the normalisation.
      mean: path of its running mean.
      variance: path of its running variance.
    """

    norm: str
    mean: str
    variance: str


def find_statistics(variables: Any) -> list[RunningStatistics]:
    """Find the running statistics in the variables of a Flax, Haiku or Equinox model.

    Args:
      variables: any pytree.

    Returns:
      One entry for each normalisation.
    """
    shapes = {
        path: getattr(leaf, "shape", ())
        for path, leaf in paths.leaves_by_path(variables).items()
    }
    found = [*_named(shapes, *_FLAX), *_named(shapes, *_HAIKU)]
    for state in _equinox_states(variables):
        below = [path for path in shapes if path.startswith(state)]
        # Other layers hold pairs, too: statistics are vectors of the same size.
        found += [
            pair
            for pair in _named(below, *_EQUINOX)
            if len(shapes[pair.mean]) == 1
            and shapes[pair.mean] == shapes[pair.variance]
        ]
    return found


def variance_of(statistics: dict[str, jax.Array], norm: str) -> jax.Array | None:
    """Return the running variance of a normalisation, or None if there is none.

    Args:
      statistics: arrays by path.
      norm: path of the normalisation, as in ``RunningStatistics``.

    Returns:
      The array.
    """
    for _, name in (_FLAX, _HAIKU, _EQUINOX):
        path = f"{norm}/{name}" if norm else name
        if path in statistics:
            return statistics[path]
    return None


def _named(known: Iterable[str], mean: str, variance: str) -> list[RunningStatistics]:
    known = set(known)
    found = []
    for path in sorted(known):
        norm = path.removesuffix(mean)
        if path.endswith(mean) and (not norm or norm.endswith("/")):
            beside = norm + variance
            if beside in known:
                found.append(RunningStatistics(norm.rstrip("/"), path, beside))
    return found


def _equinox_states(variables: Any) -> list[str]:
    """Return the path prefix of the entries of every ``equinox.nn.State``."""

    def is_state(x):
        return type(x).__name__ == "State" and type(x).__module__.startswith("equinox")

    leaves = paths.leaves_with_path(variables, is_leaf=is_state)
    found = [paths.path_string(key_path) for key_path, x in leaves if is_state(x)]
    return [f"{path}/" if path else "" for path in found]
