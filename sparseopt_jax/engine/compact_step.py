"""The step with compact parameters: active blocks, no dense arrays."""

import dataclasses
import warnings
from typing import Any

import jax

from sparseopt_jax.engine.compact_inner import check_inner
from sparseopt_jax.engine.owner import MaskOwner
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_kernel import (
    CompactKernel,
    active_arrays,
    holds_compact,
    is_compact,
    with_kernels,
    write_places,
)
from sparseopt_jax.masks.compact_storage import CompactStorage
from sparseopt_jax.masks.state import SparseState
from sparseopt_jax.masks.storage import MaskStorage, whole
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree
from sparseopt_jax.trees.evened_boxes import reboxed


class CompactStep:
    """The ``update`` of compact parameters, with checks before the first one.

    It is the update of a compact ``sparsify`` whose parameters are the active weights.
    Only the host updates the masks, so that the step has no dense array.
    """

    def __init__(self, owner: MaskOwner):
        self._owner = owner
        compact = dataclasses.replace(
            owner, storage=CompactStorage(), host_updates=True
        )
        self._update = compact.update
        self._is_checked = False

    def update(
        self, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Any, SparseState]:
        """Take one step.

        Args:
          updates: the gradients, compact or dense.
          state: the state.
          params: the parameters.
          extra_args: the caller's keyword arguments.

        Returns:
          Updates like ``params``, and the new state.
        """
        if not self._is_checked:
            self._check()
            self._is_checked = True
        plain = whole(unbox_tree(state))
        check_kernels(plain, params)
        changes, new = self._update(
            unbox_tree(active_arrays(updates)),
            plain,
            unbox_tree(active_arrays(params)),
            **active_arrays(extra_args),
        )
        index = paths.leaves_by_path(plain.masks.tree)
        changes = with_kernels(
            lambda path, kernel, change: _update_of(kernel, change, index[path]),
            params,
            changes,
        )
        return changes, reboxed(state, new)

    def _check(self) -> None:
        owner = self._owner
        if owner.is_link:
            raise TypeError(
                "the optimizer that follows sparseopt would change the places of "
                "compact parameters: put the optimizer inside, "
                "so.sparsify(optax.chain(so.scale_by_sparseopt(), ...), topology)"
            )
        if not owner.storage.is_compact:
            check_inner(
                owner.inner, "compact parameters show", "keep the parameters dense"
            )
        if owner.topology.moves and not owner.host_updates:
            warnings.warn(
                f"with compact parameters only so.update_topology, called from the "
                f"host, updates the masks of {owner.topology.name}: build the "
                "optimizer with so.sparsify(..., host_updates=True)",
                stacklevel=4,
            )


def _update_of(kernel: CompactKernel, change: Any, index: jax.Array) -> CompactKernel:
    """Return the update of a kernel, which also corrects rounded places."""
    places = write_places(index).astype(kernel.places.dtype) - kernel.places
    return CompactKernel(change, places, kernel.layout)


def check_kernels(state: SparseState, params: Any) -> dict[str, CompactKernel]:
    """Return the compact parameters by path, after checking them against a state.

    Args:
      state: the state of an owner.
      params: tree with compact parameters.

    Raises:
      ValueError: with the path of the first parameter that does not match the state.
    """
    found = paths.flatten_with_paths(params, is_leaf=is_compact)
    kernels = {path: x for path, x in found if is_compact(x)}
    if not isinstance(state.masks, ActiveIndices):
        raise ValueError(
            f"the parameter at {next(iter(kernels))!r} is compact, but opt_state is "
            "not: so.compact_params(params, opt_state) converts both together"
        )
    layouts = dict(state.masks.layouts)
    for path, kernel in kernels.items():
        if layouts.get(path) != kernel.layout:
            raise ValueError(
                f"opt_state does not hold the active blocks of the parameter at "
                f"{path!r}, {kernel!r}: it was made compact with other parameters"
            )
    return kernels


def check_dense(storage: MaskStorage, updates: Any, state: Any) -> None:
    """Raise if the gradient or the state is compact although parameters are dense."""
    if holds_compact(updates):
        raise ValueError(
            "the gradient belongs to compact parameters, but params are dense: pass "
            "the parameters at which the gradient was computed"
        )
    masks = getattr(state, "masks", None)
    if isinstance(masks, ActiveIndices) and not storage.is_compact:
        raise ValueError(
            "opt_state is compact, but params are dense: pass the compact parameters, "
            "or convert the state with so.convert_state(tx, params, opt_state)"
        )
