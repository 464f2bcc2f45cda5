"""Updates of the masks of compact parameters, from the host."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from sparseopt_jax.engine.compact_step import check_kernels
from sparseopt_jax.masks.active_weights import Places
from sparseopt_jax.masks.compact_kernel import (
    CompactKernel,
    active_arrays,
    holds_compact,
    is_compact,
    with_kernels,
)
from sparseopt_jax.masks.compact_storage import CompactStorage
from sparseopt_jax.masks.owners import Owner
from sparseopt_jax.masks.state import SparseState, is_sparse_state, places_of
from sparseopt_jax.masks.storage import Masks, Stored
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree
from sparseopt_jax.trees.evened_boxes import reboxed

Update = Callable[[Any, Any, Any], tuple[Any, Any]]


def updated_compact(
    update: Update, grads: Any, opt_state: Any, params: Any
) -> tuple[Any, Any]:
    """Update the masks of compact parameters.

    As in a step, ``update`` sees arrays of active weights in place of the parameters.
    Scores and selection use blocks, or dense arrays that exist only during the update.

    Args:
      update: ``update(grads, opt_state, params)`` updates the masks and returns
        parameters and state.
      grads: gradients like ``params``, compact or dense; None if they are not read.
      opt_state: the state.
      params: the compact parameters.

    Returns:
      The new compact parameters, and the new state.
    """
    plain, active = unbox_tree(opt_state), unbox_tree(active_arrays(params))
    before = places_of(plain)
    # If grads is None, the topology reads no gradients: any tree of this form will do.
    grads = active if grads is None else unbox_tree(active_arrays(grads))
    weights, new = update(grads, plain, active)
    after = places_of(new)

    def kernel(path, _, active):
        layout, index = after[tuple(path.split("/"))]
        return CompactKernel.of(active, index, layout)

    new = _without_moved(new, before, after)
    return with_kernels(kernel, params, weights), reboxed(opt_state, new)


def compact_owner(owner: Owner, state: SparseState, grads: Any, params: Any) -> Owner:
    """Return the owner of a state with a storage that updates compact parameters.

    Args:
      owner: the owner in ``tx``.
      state: the state.
      grads: the gradients, or None.
      params: the parameters, some of which may be compact.

    Raises:
      ValueError: if the gradients omit entries that the topology reads, or the
        parameters do not belong to the state.
    """
    topology, params = owner.topology, owner.seen(params)
    if not holds_compact(params):
        return owner
    kernels = check_kernels(state, params)
    given = {
        path: x
        for path, x in paths.flatten_with_paths(grads, is_leaf=is_compact)
        if is_compact(x)
    }
    for path in kernels:
        if path in given and topology.scores_inactive:
            raise ValueError(
                f"{topology.name} scores inactive weights by their gradients, which "
                f"the compact gradient of {path!r} omits: {_remedy(topology)}"
            )
    storage = CompactStorage() if topology.keeps_counts else _SameNumbers(topology)
    return owner._replace(storage=storage)


def check_gradients(topology: Topology, grads: Any) -> None:
    """Raise a ValueError if gradients are None but the topology reads them."""
    if grads is None and topology.reads_gradients:
        raise ValueError(
            f"{topology.name} needs gradients to update its masks, but grads is None: "
            f"{_remedy(topology)}"
        )


def _remedy(topology: Topology) -> str:
    if topology.scores_inactive:
        return "pass so.dense_gradient(loss)(params, ...)"
    return "pass the gradient of the step"


class _SameNumbers(CompactStorage):
    """Storage that accepts new masks only with as many active units as the old ones."""

    def __init__(self, topology: Topology):
        self._name = topology.name

    def move(
        self, stored: Stored, masks: Masks, new: Masks, state: Any
    ) -> tuple[Stored, Any]:
        """Implement ``MaskStorage.move``."""
        by_path = paths.leaves_by_path(new)
        for path, layout in stored.layouts:
            if path not in by_path:
                continue
            if isinstance(by_path[path], Tracer):
                raise ValueError(
                    f"{self._name} may change how many blocks are active, which is "
                    "known only from concrete masks: call so.update_topology outside "
                    "of jit"
                )
            counts = layout.units.count(layout.units.any(by_path[path]))
            if int(jnp.min(counts)) != layout.per_cell or int(jnp.max(counts)) > int(
                jnp.min(counts)
            ):
                raise ValueError(
                    f"{self._name} changes the number of active blocks of {path!r} "
                    f"from {layout.per_cell} to {int(jnp.max(counts))} in this update, "
                    "but compact parameters need a fixed number: convert with params = "
                    "so.dense_params(params) and opt_state = so.convert_state(tx, "
                    "params, opt_state), update, and call so.compact_params again"
                )
        return super().move(stored, masks, new, state)


def _without_moved(opt_state: Any, before: Places, after: Places) -> Any:
    """Zero the entries of moved blocks in sums of gradients around ``sparsify``."""
    kept = {
        parts: layout.spread(index == before[parts][1])
        for parts, (layout, index) in after.items()
    }

    def at_leaf(key_path, x):
        stays = paths.longest_ending(paths.path_parts(key_path), kept)
        if not is_compact(x) or stays is None:
            return x
        return x.with_active(jnp.where(stays, x.active, jnp.zeros_like(x.active)))

    return paths.map_with_key_paths(
        at_leaf, opt_state, is_leaf=lambda x: is_compact(x) or is_sparse_state(x)
    )
