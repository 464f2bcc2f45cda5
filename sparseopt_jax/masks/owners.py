"""Owners of masks, and how to find them inside any nest of optax wrappers."""

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
    """The settings with which a state with masks was made.

    Attributes:
      topology: the topology.
      inner: the inner transformation.
      storage: how the masks are stored.
      key: the seed or PRNG key.
      is_link: whether the optimizer follows the owner in a chain, as with
        ``sparseopt``.
      structure: the tree structure of the masks, independent of their storage.
      holes: True at leaves or subtrees that a wrapper hides from the owner.
    """

    topology: Any
    inner: optax.GradientTransformationExtraArgs
    storage: MaskStorage
    key: jax.typing.ArrayLike
    is_link: bool
    structure: Any
    holes: Any

    def seen(self, params: Any) -> Any:
        """Return the parameters that the owner sees, with holes for hidden ones."""
        return jax.tree.map(
            lambda hole, p: optax.MaskedNode() if hole else p, self.holes, params
        )


# While a list is set, the `init` of every owner appends an entry to it.
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
    """Record an owner, called by its ``init`` with the parameters and masks."""
    owners = _OWNERS.get()
    if owners is not None:
        # Holes without boxes fit both boxed and unboxed parameters.
        plain = unbox_tree(params)
        holes = jax.tree.map(paths.is_hole, plain, is_leaf=paths.is_hole)
        structure = structure_of(masks)
        owners.append(Owner(topology, inner, storage, key, is_link, structure, holes))


def structure_of(masks: Any) -> Any:
    """Return the structure of masks, the same for every storage, boxed or not."""
    if isinstance(masks, ActiveIndices):
        sparse = {path for path, _ in masks.layouts}
        masks = paths.map_with_paths(
            lambda path, x: 0 if path in sparse else x, masks.tree
        )
    masks = jax.tree.map(lambda x: 0 if is_packed(x) else x, masks, is_leaf=is_packed)
    return jax.tree.structure(unbox_tree(masks))


def are_recorded() -> bool:
    """Return whether an ``init`` runs only to find owners."""
    return _OWNERS.get() is not None


def find_owners(tx: optax.GradientTransformation, params: Any) -> list[Owner]:
    """Return the owners within a transformation, in the order of their ``init``.

    Compact parameters are replaced by the shapes of their dense arrays.

    Raises:
      ValueError: if two of them make the same leaves sparse: their states could not be
        distinguished.
    """
    owners: list[Owner] = []
    token = _OWNERS.set(owners)
    try:
        # A new function each time: with a cached trace, `init` would not run again.
        jax.eval_shape(lambda p: tx.init(p), dense_shapes(params))
    finally:
        _OWNERS.reset(token)
    sparse = [owner.structure for owner in owners if owner.structure.num_leaves]
    if len(set(sparse)) < len(sparse):
        raise ValueError(
            "tx holds two sparsify or sparseopt that make the same leaves sparse, so "
            "that it is unknown which of them made which masks: keep one of them, or "
            "give each its own leaves with optax.partition"
        )
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
      extra_args: the caller's keyword arguments.
      shapes: by path, shapes that gradients may have instead of the weights'.
      scored_by: the name of a topology that needs the gradients of inactive weights;
        None if they are not needed.

    Raises:
      ValueError: if parameters are missing, masks are passed, or gradients differ in
        shape from the parameters.
    """
    if params is None:
        raise ValueError(
            "params are needed to keep inactive weights at zero: call "
            "tx.update(grads, opt_state, params)"
        )
    if "masks" in extra_args:
        raise ValueError(
            "masks must not be passed to update, because sparsify owns them; to start "
            "from given masks, pass them to the topology: static(masks=...)"
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
                f"the compact gradient of {path!r} omits: pass the dense gradient, or "
                "use a topology that grows at random"
            )


def _misshapen(path: str, grad: Any, param: Any) -> str:
    found, shape = jnp.shape(grad), jnp.shape(param)
    message = (
        f"the gradient at {path!r} has shape {found}, but its parameter has shape "
        f"{shape}"
    )
    if found[1:] == shape:
        message += (
            ": aggregate per-example gradients before sparsify, as in "
            "optax.chain(optax.contrib.differentially_private_aggregate(...), "
            "so.sparsify(...))"
        )
    return message
