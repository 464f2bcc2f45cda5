"""ITOP: settings with which SET and RigL explore more."""

import dataclasses
from typing import Any

from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.topologies.methods.static import rigl, set_
from sparseopt_jax.topologies.rewiring import Rewiring


def set_itop(
    sparsity: float | None = None,
    *,
    stop: int,
    every: int = 1500,
    drop_fraction: float = 0.5,
    **options: Any,
) -> Rewiring:
    """SET with the settings of ITOP: rarer and larger changes, exploration tracked.

    Args:
      sparsity: as in ``static``.
      stop: as in ``set_``.
      every: steps between changes; the authors' for CIFAR at batch 128.
      drop_fraction: as in ``set_``; the authors'.
      **options: as in ``set_``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``set_``.
      TypeError: as ``set_``.

    References:
      Liu et al., Do we actually need dense over-parameterization? In-time
      over-parameterization in sparse training, 2021 (arXiv 2102.02887), and its
      published code.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.set_itop(0.95, stop=97_000).schedule.every
      1500
    """
    itop = {"every": every, "drop_fraction": drop_fraction, "track_explored": True}
    check_options("set_itop", set_, options, given=("stop", "every", "drop_fraction"))
    topology = set_(sparsity, stop=stop, **(itop | options))
    return dataclasses.replace(topology, name="set_itop")


def rigl_itop(
    sparsity: float | None = None,
    *,
    stop: int,
    every: int = 4000,
    drop_fraction: float = 0.5,
    **options: Any,
) -> Rewiring:
    """RigL with the settings of ITOP: as ``set_itop``, for CIFAR and ImageNet.

    Args:
      sparsity: as in ``static``.
      stop: as in ``rigl``.
      every: steps between changes; the authors'.
      drop_fraction: as in ``rigl``; the authors'.
      **options: as in ``rigl``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``rigl``.
      TypeError: as ``rigl``.

    References:
      As ``set_itop``.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.rigl_itop(0.9, stop=400_000).track_explored
      True
    """
    itop = {"every": every, "drop_fraction": drop_fraction, "track_explored": True}
    check_options("rigl_itop", rigl, options, given=("stop", "every", "drop_fraction"))
    topology = rigl(sparsity, stop=stop, **(itop | options))
    return dataclasses.replace(topology, name="rigl_itop")
