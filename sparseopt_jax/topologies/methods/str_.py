"""STR: a threshold per layer, learned together with the weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.layers.eligibility import (
    Include,
    Where,
    array_leaves,
    check_where,
    included,
    kinds_by_path,
    why_dense,
    why_never,
)
from sparseopt_jax.layers.neurons import Dims, check_dims, resolve_axes
from sparseopt_jax.topologies.catalogue import method
from sparseopt_jax.trees import paths


@dataclasses.dataclass(frozen=True)
class SoftThreshold:
    """Soft thresholds, one per kernel; build it with ``str_``.

    Attributes:
      initial: initial logit of every threshold; weights below its sigmoid are zero.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      dims: the axes of kernels, as in ``static``; each layer of a stack has its own
        threshold.
      include: leaves that get a threshold although they are not kernels: globs over
        paths, or a function of path and leaf.
    """

    initial: float
    where: Where | None
    dims: Dims
    include: Include | None = None

    def init(self, params: Any) -> Any:
        """Return the initial thresholds, which are trained with the weights.

        Args:
          params: any pytree of arrays or ``jax.ShapeDtypeStruct``.

        Returns:
          A tree like ``params``: float32 logits, with the axes of a layer of size 1;
          ``optax.MaskedNode()`` at leaves without a threshold.

        Raises:
          ValueError: if no leaf can have one.
        """
        flat, kinds, reasons = array_leaves(params), kinds_by_path(params), {}
        all_axes = {
            path: resolve_axes(self.dims, path, leaf, is_sparse=False)
            for path, leaf in flat.items()
        }
        never = {path: why_never(leaf, all_axes[path]) for path, leaf in flat.items()}
        chosen = included(self.include, flat, never)

        def at_leaf(path, leaf):
            if paths.is_hole(leaf):
                return leaf
            axes = all_axes[path]
            reasons[path] = why_dense(
                path,
                leaf,
                axes,
                self.where,
                kind=kinds[path],
                is_included=path in chosen,
            )
            if reasons[path] or axes is None:
                return optax.MaskedNode()
            axes = resolve_axes(self.dims, path, leaf) or axes
            shape = tuple(n if a in axes.batch else 1 for a, n in enumerate(leaf.shape))
            return jnp.full(shape, self.initial, jnp.float32)

        thresholds = paths.map_with_paths(at_leaf, params)
        if all(reasons.values()):
            listed = "; ".join(f"{path}: {why}" for path, why in reasons.items())
            raise ValueError(f"no parameter can have a threshold ({listed})")
        return thresholds

    def __call__(self, params: Any, thresholds: Any) -> Any:
        """Return the weights of the forward pass: sign(w) max(|w| - sigmoid(s), 0).

        Call it inside the differentiated function, so that both trees are trained.

        Args:
          params: the dense weights.
          thresholds: the logits s, from ``init``, trained.

        Returns:
          A tree like ``params``.
        """

        def at_leaf(param, threshold):
            if paths.is_hole(threshold) or paths.is_hole(param):
                return param
            left = jnp.abs(param) - jax.nn.sigmoid(threshold).astype(param.dtype)
            return jnp.sign(param) * jax.nn.relu(left)

        return jax.tree.map(at_leaf, params, thresholds, is_leaf=paths.is_hole)

    def masks(self, params: Any, thresholds: Any) -> Any:
        """Return masks of the weights above thresholds, for ``static(masks=...)``."""

        def at_leaf(param, threshold):
            if paths.is_hole(threshold) or paths.is_hole(param):
                return optax.MaskedNode()
            return jnp.abs(param) > jax.nn.sigmoid(threshold).astype(param.dtype)

        return jax.tree.map(at_leaf, params, thresholds, is_leaf=paths.is_hole)


@method("STR", "2002.03231")
def str_(
    *,
    initial: float = -5.0,
    where: Where | None = None,
    include: Include | None = None,
    dims: Dims = None,
) -> SoftThreshold:
    """Learn how sparse each layer is (STR, soft threshold reparameterization).

    The result is not a topology but a function of weights and thresholds; any optimizer
    trains both. Weight decay on the logits of the thresholds, which raises the
    thresholds, determines how sparse the network becomes.

    Args:
      initial: initial logit of every threshold, usually below 0, so that weight decay
        raises it; sigmoid(-5) is 0.0067. The default is ours; the authors tune it with
        the weight decay.
      where: ``where(path, leaf) -> bool``; False keeps a kernel dense.
      include: as in ``static``.
      dims: the axes of kernels, as in ``static``.

    Returns:
      A ``SoftThreshold``: call it on weights and thresholds; ``init`` makes the
      thresholds, ``masks`` the masks.

    Raises:
      TypeError: if ``where`` is not a function, or ``initial``, ``include`` or ``dims``
        is of the wrong type.

    References:
      Kusupati et al., Soft threshold weight reparameterization for learnable sparsity,
      2020 (arXiv 2002.03231).

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> soft = so.str_(initial=0.0)
      >>> weights = {"kernel": jnp.array([[1.0, -0.75], [0.25, -2.0]])}
      >>> thresholds = soft.init(weights)
      >>> print(soft(weights, thresholds)["kernel"])
      [[ 0.5  -0.25]
       [ 0.   -1.5 ]]
      >>> def loss(both):
      ...     return soft(*both)["kernel"].sum()
      >>> gradient = jax.grad(loss)((weights, thresholds))
    """
    check_where(where, include)
    check_dims(dims)
    if include is not None and not callable(include):
        include = (include,) if isinstance(include, str) else tuple(include)
    return SoftThreshold(number("initial", initial), where, dims, include)
