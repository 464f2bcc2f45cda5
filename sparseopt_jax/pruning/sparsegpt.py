"""SparseGPT: prunes a layer so that its output changes least.

The layer's output is X W. The optimal brain surgeon removes a weight and updates the
others so that they compensate for it best; H = X^T X is the Hessian of the squared
error. If the inputs of all neurons are processed in the same order, one Cholesky factor
holds the inverse Hessians of all later steps: H^-1 = U^T U, U upper triangular.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.arrays.library import library
from sparseopt_jax.arrays.selection import top_k_mask
from sparseopt_jax.arrays.sharding_types import placed_like, replicated
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.structures import NM, ConstantFanIn, Unstructured
from sparseopt_jax.pruning.input_statistics import Inputs


@dataclasses.dataclass(frozen=True)
class SparseGPT:
    """SparseGPT with its settings, as a method of ``prune``.

    Attributes:
      damping: added to the diagonal of H, as a fraction of the diagonal's mean.
      block_size: number of inputs that are pruned at a time. The weights to keep in a
        block are chosen together, after they have compensated for earlier blocks.
        Rounded down to whole groups of an N:M structure.

    Raises:
      ValueError: if one of them is not positive, or ``block_size`` not an integer.

    References:
      Frantar & Alistarh, SparseGPT: massive language models can be accurately pruned in
      one-shot, 2023 (arXiv 2301.00774), algorithm 1.

    Examples:
      >>> SparseGPT(block_size=64)
      SparseGPT(damping=0.01, block_size=64)
    """

    damping: float = 0.01
    block_size: int = 128

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping must be positive, got {self.damping}")
        if not isinstance(self.block_size, int) or self.block_size < 1:
            raise ValueError(
                f"block_size must be an integer of at least 1, got {self.block_size!r}"
            )

    def solve(
        self, path: str, plan: LeafPlan, inputs: Inputs
    ) -> tuple[jax.Array, jax.Array]:
        """Prune one kernel.

        Args:
          path: its path, for errors.
          plan: the kernel, its structure and its number of active weights.
          inputs: statistics of its inputs, with the Gram matrix.

        Returns:
          The kernel's new weights, zero where they are removed, and the mask.

        Raises:
          ValueError: if the structure does not run along the inputs, H is not positive
            definite in float32, or a new weight exceeds the range of its dtype.
        """
        assert inputs.gram is not None and plan.layer is not None
        order, group = _order(path, plan, inputs)
        fan_in = len(order)
        block = min(self.block_size, fan_in)
        if group:
            block = max(block // group * group, group)
        pieces = _Pieces(
            block=block,
            group=group or block,
            by_neuron=not isinstance(plan.structure, Unstructured),
        )
        kept = _kept(plan, inputs, fan_in, block)

        def solve(leaf: jax.Array, gram: jax.Array) -> tuple[jax.Array, jax.Array]:
            weights = inputs.matrices(leaf.astype(jnp.float32))[:, order]
            gram = inputs.flat(gram, 2)[:, order][:, :, order]
            solved, masks = _solve_all(
                weights, gram, jnp.asarray(kept), self.damping, pieces
            )
            back = np.argsort(order)
            kernel = inputs.from_matrices(solved[:, back])
            return kernel, inputs.from_matrices(masks[:, back])

        results = replicated(solve, plan.leaf, inputs.gram)
        kernel, mask = (placed_like(x, plan.leaf) for x in results)
        if not bool(jnp.all(jnp.isfinite(kernel))):
            raise ValueError(
                f"sparsegpt: H of {path!r} is not positive definite in float32, or its "
                "weights or inputs are not finite; raise damping, for instance "
                f"SparseGPT(damping={10 * self.damping:g})"
            )
        return _in_dtype_of(plan.leaf, kernel, path), mask


def _in_dtype_of(leaf: Any, kernel: jax.Array, path: str) -> Any:
    """Return new weights in the library and dtype of the old ones.

    Args:
      leaf: the old weights.
      kernel: the new weights, in float32 and finite. Those that are still equal to the
        old ones in float32 keep all digits.
      path: for the error.

    Raises:
      ValueError: if one exceeds the range of the dtype.
    """
    xp = library(leaf)
    with np.errstate(over="ignore"):
        result = xp.asarray(kernel).astype(leaf.dtype)
    if not bool(xp.all(xp.isfinite(result))):
        raise ValueError(
            f"sparsegpt: new weights of {path!r} exceed the range of {leaf.dtype}: "
            "pass the parameters in float32"
        )
    return xp.where(xp.asarray(kernel) == leaf.astype(xp.float32), leaf, result)


def _order(path: str, plan: LeafPlan, inputs: Inputs) -> tuple[np.ndarray, int]:
    """Return the order of the inputs, N:M groups contiguous, and the group size."""
    structure, reduction = plan.structure, inputs.axes.reduction
    sizes = [inputs.shape[a] for a in reduction]
    order = np.arange(math.prod(sizes))
    if isinstance(structure, Unstructured | ConstantFanIn):
        return order, 0
    axis = -1
    if isinstance(structure, NM):
        axis = structure.axis_of(inputs.shape, reduction) % len(inputs.shape)
    if not isinstance(structure, NM) or axis not in reduction:
        raise ValueError(
            f"sparsegpt prunes along the inputs of neurons, but {structure} of "
            f"{path!r} does not run along them: use Unstructured(), ConstantFanIn(), "
            f"or NM along one of the axes {reduction}"
        )
    grouped = np.moveaxis(order.reshape(sizes), reduction.index(axis), -1)
    return grouped.ravel(), structure.m


def _kept(plan: LeafPlan, inputs: Inputs, fan_in: int, block: int) -> np.ndarray:
    """Return the number of active weights of each set and block: (sets, blocks).

    If the structure divides a layer into cells, the number of each cell of the block.
    """
    sets = math.prod(inputs.gram.shape[:-2])  # pyright: ignore
    ends = np.minimum(np.arange(0, fan_in + block, block), fan_in)
    assert isinstance(plan.per_cell, int)
    per_cell = plan.per_cell
    if isinstance(plan.structure, NM):
        return np.full((sets, len(ends) - 1), per_cell, np.int32)
    if isinstance(plan.structure, ConstantFanIn):
        return np.tile(_shares(per_cell, ends), (sets, 1))
    # The active weights of a layer are divided among its groups, if it has any.
    groups = _shares(per_cell, np.arange(inputs.groups + 1))
    return np.tile(
        [_shares(count, ends) for count in groups.tolist()], (sets // len(groups), 1)
    )


def _shares(total: int, ends: np.ndarray) -> np.ndarray:
    """Split a number into integers in proportion to the distances between ends."""
    return np.diff(total * ends.astype(np.int64) // ends[-1]).astype(np.int32)


class _Pieces(NamedTuple):
    """Sets of weights that are pruned together.

    Attributes:
      block: number of inputs in a block.
      group: number of inputs whose weights compete; divides ``block``.
      by_neuron: whether only weights of the same neuron compete.
    """

    block: int
    group: int
    by_neuron: bool


@functools.partial(jax.jit, static_argnames="pieces")
def _solve_all(
    weights: jax.Array,
    gram: jax.Array,
    kept: jax.Array,
    damping: jax.typing.ArrayLike,
    pieces: _Pieces,
) -> tuple[jax.Array, jax.Array]:
    solve = functools.partial(_solve, damping=damping, pieces=pieces)
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(lambda one_set: solve(*one_set), (weights, gram, kept))


def _solve(
    w: jax.Array,
    h: jax.Array,
    kept: jax.Array,
    *,
    damping: jax.typing.ArrayLike,
    pieces: _Pieces,
) -> tuple[jax.Array, jax.Array]:
    """Prune one matrix.

    Args:
      w: (fan_in, neurons) float32.
      h: (fan_in, fan_in), the Gram matrix; its scale does not matter.
      kept: (blocks,) int32, number of active weights: of each neuron in every group, or
        of all neurons together.
      damping: as in ``SparseGPT``.
      pieces: the sets of weights that are pruned together.

    Returns:
      The new weights and the mask.
    """
    fan_in, blocks, block = w.shape[0], kept.shape[0], pieces.block
    padding = blocks * block - fan_in
    diagonal = jnp.diagonal(h)
    # Weights whose input is always zero do not matter: make them zero.
    w = jnp.where(diagonal[:, None] > 0, w, 0)
    w = jnp.pad(w, ((0, padding), (0, 0)))
    u = _inverse_factor(h, damping)
    u = jnp.pad(u, ((0, padding), (0, padding)))
    inputs = jnp.arange(blocks * block)
    u += jnp.diag((inputs >= fan_in).astype(u.dtype))

    def prune_block(i, state):
        w, mask = state
        start = i * block
        rows = jax.lax.dynamic_slice_in_dim(w, start, block)
        factor = jax.lax.dynamic_slice_in_dim(u, start, block)
        within = jax.lax.dynamic_slice_in_dim(factor, start, block, axis=1)
        exists = jax.lax.dynamic_slice_in_dim(inputs, start, block) < fan_in
        rows, stay, errors = _prune_block(rows, within, exists, kept[i], pieces)
        later = jnp.where(inputs >= start + block, factor, 0)
        w = jax.lax.dynamic_update_slice_in_dim(w, rows, start, 0) - later.T @ errors
        return w, jax.lax.dynamic_update_slice_in_dim(mask, stay, start, 0)

    start = w, jnp.zeros(w.shape, bool)
    w, mask = jax.lax.fori_loop(0, blocks, prune_block, start)
    w, mask = w[:fan_in], mask[:fan_in]
    return jnp.where(mask, w, 0), mask


def _prune_block(
    rows: jax.Array,
    factor: jax.Array,
    exists: jax.Array,
    kept: jax.Array,
    pieces: _Pieces,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prune the inputs of one block.

    Args:
      rows: (block, neurons), their weights.
      factor: (block, block), their part of the factor of the inverse Hessian.
      exists: (block,) bool, False for inputs that only pad the last block.
      kept: int32 scalar, number of active weights, as in ``_solve``.
      pieces: the sets of weights that are pruned together.

    Returns:
      The new weights, the mask, and the errors for which later inputs compensate.
    """
    group = pieces.group

    def prune_group(j, state):
        rows, stay, errors = state
        first = j * group
        weights = jax.lax.dynamic_slice_in_dim(rows, first, group)
        scale = jax.lax.dynamic_slice_in_dim(jnp.diagonal(factor), first, group)
        chosen = top_k_mask(
            jnp.square(weights / scale[:, None]),
            kept,
            where=jnp.broadcast_to(
                jax.lax.dynamic_slice_in_dim(exists, first, group)[:, None],
                weights.shape,
            ),
            axis=0 if pieces.by_neuron else None,
        )
        stay = jax.lax.dynamic_update_slice_in_dim(stay, chosen, first, 0)

        def prune_input(c, state):
            rows, errors = state
            error = jnp.where(stay[c], 0, rows[c]) / factor[c, c]
            # Earlier inputs are done: their entries of the factor are zero.
            rows -= factor[c][:, None] * error
            return rows, errors.at[c].set(error)

        rows, errors = jax.lax.fori_loop(
            first, first + group, prune_input, (rows, errors)
        )
        return rows, stay, errors

    nothing = jnp.zeros(rows.shape, bool), jnp.zeros_like(rows)
    return jax.lax.fori_loop(0, pieces.block // group, prune_group, (rows, *nothing))


def _inverse_factor(h: jax.Array, damping: jax.typing.ArrayLike) -> jax.Array:
    """Return the upper triangular U with U^T U = (H + damping)^-1.

    Factored from the last input to the first, H is R R^T with R upper triangular, and U
    is the inverse of R: only a triangular matrix is inverted.
    """
    diagonal = jnp.diagonal(h)
    unused = (diagonal == 0).astype(h.dtype)
    h += jnp.diag(damping * jnp.mean(diagonal) + unused)
    r = jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(r, jnp.eye(len(h), dtype=h.dtype))
