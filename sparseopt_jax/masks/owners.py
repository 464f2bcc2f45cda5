"""Finding the owners of masks inside any nest of optax wrappers."""

import contextvars
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_kernel import dense_shapes
from sparseopt_jax.masks.packing import is_packed
from sparseopt_jax.masks.storage import MaskStorage, Stored
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree


class Owner(NamedTuple):
    """What a state with masks was made by and for.

    Attributes:
      topology: its topology.
      inner: its inner transformation.
      storage: how its masks are kept.
      key: the seed or PRNG key that it was given.
      is_link: whether the optimizer follows it in a chain, as with ``sparseopt``.
      structure: the structure of its masks, in whatever form they are kept.
      holes: True where a wrapper kept parameters from it, a leaf or a subtree.
    """

    topology: Any
    inner: optax.GradientTransformationExtraArgs
    storage: MaskStorage
    key: jax.typing.ArrayLike
    is_link: bool
    structure: Any
    holes: Any

    def seen(self, params: Any) -> Any:
        """The parameters that a wrapper left to it, holes in place of the others."""
        return jax.tree.map(
            lambda hole, p: optax.MaskedNode() if hole else p, self.holes, params
        )


# While a list is set, every `init` of an owner adds itself to it.
_OWNERS: contextvars.ContextVar[list[Owner] | None] = contextvars.ContextVar(
    "sparseopt_jax_owners", default=None
)


def record_owner(
    *,
    topology: Any,
    inner: optax.GradientTransformationExtraArgs,
    storage: MaskStorage,
    key: jax.typing.ArrayLike,
    is_link: bool,
    params: Any,
    masks: Stored,
) -> None:
    """Called by an owner's ``init``, with its parameters and its masks."""
    owners = _OWNERS.get()
    if owners is not None:
        # Without boxes, they fit parameters that are boxed and such that are not.
        plain = unbox_tree(params)
        holes = jax.tree.map(paths.is_hole, plain, is_leaf=paths.is_hole)
        structure = structure_of(masks)
        owners.append(Owner(topology, inner, storage, key, is_link, structure, holes))


def structure_of(masks: Any) -> Any:
    """Return the structure of masks, the same in every storage, boxed or not."""
    if isinstance(masks, ActiveIndices):
        sparse = {path for path, _ in masks.layouts}
        masks = paths.map_with_paths(
            lambda path, x: 0 if path in sparse else x, masks.tree
        )
    masks = jax.tree.map(lambda x: 0 if is_packed(x) else x, masks, is_leaf=is_packed)
    return jax.tree.structure(unbox_tree(masks))


def are_recorded() -> bool:
    """Return whether an ``init`` is run to find owners only."""
    return _OWNERS.get() is not None


def find_owners(tx: optax.GradientTransformation, params: Any) -> list[Owner]:
    """Return the owners within a transformation, in the order of their ``init``.

    Where active blocks alone are parameters, the shapes of the dense ones stand for
    them.
    """
    owners: list[Owner] = []
    token = _OWNERS.set(owners)
    try:
        # A fresh function each time: a remembered trace would not run `init` again.
        jax.eval_shape(lambda p: tx.init(p), dense_shapes(params))
    finally:
        _OWNERS.reset(token)
    return owners


def check_update(
    updates: Any,
    params: Any,
    extra_args: dict[str, Any],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    scored_by: str | None,
) -> None:
    """Raise unless an owner's ``update`` can work with these arguments.

    Args:
      updates: the gradients.
      params: the weights.
      extra_args: the caller's keywords.
      shapes: shapes that gradients may have instead of the weights', by path.
      scored_by: the topology that needs the gradients of inactive weights, too; None
        if it needs none.

    Raises:
      ValueError: without parameters, with masks from outside, or with gradients of
        other shapes than the parameters.
    """
    if params is None:
        raise ValueError(
            "params are needed to keep inactive weights at zero: call "
            "tx.update(grads, opt_state, params)"
        )
    if "masks" in extra_args:
        raise ValueError(
            "masks must not be passed to update, sparsify owns them; to start from "
            "given masks, pass them to the topology: static(masks=...)"
        )
    leaves = paths.leaves_by_path(params)
    for path, grad in paths.leaves_by_path(updates).items():
        if path not in leaves or jnp.shape(grad) == jnp.shape(leaves[path]):
            continue
        if jnp.shape(grad) != shapes.get(path):
            raise ValueError(_misshapen(path, grad, leaves[path]))
        if scored_by:
            raise ValueError(
                f"{scored_by} scores inactive weights by their gradients, which "
                f"the compact gradient of {path!r} leaves out: pass the gradient "
                "itself, or use a topology that grows at random"
            )


def _misshapen(path: str, grad: Any, param: Any) -> str:
    found, shape = jnp.shape(grad), jnp.shape(param)
    message = f"the gradient at {path!r} has shape {found}, its parameter {shape}"
    if found[1:] == shape:
        message += (
            ": gradients of single examples are aggregated before sparsify, as in "
            "optax.chain(optax.contrib.differentially_private_aggregate(...), "
            "so.sparsify(...))"
        )
    return message
