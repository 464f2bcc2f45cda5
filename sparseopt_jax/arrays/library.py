"""The library of an array: NumPy for its own arrays, JAX for all others."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np


def library(x: Any) -> ModuleType:
    """Return ``numpy`` for a NumPy array, ``jax.numpy`` for any other.

    JAX would convert NumPy's float64 to float32, unless ``jax_enable_x64`` is set.

    Examples:
      >>> library(np.ones(2)).__name__, library(jnp.ones(2)).__name__
      ('numpy', 'jax.numpy')
    """
    return np if isinstance(x, np.ndarray) else jnp
