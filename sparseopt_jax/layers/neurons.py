"""The axes of a kernel that are a neuron's inputs, and results of its fan-in."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.layers.kernel_names import input_axes
from sparseopt_jax.layers.leaf_kinds import kind_by_name
from sparseopt_jax.layers.neuron_dims import Axes, InferredDims, NeuronDims
from sparseopt_jax.trees import paths

Dims = NeuronDims | Mapping[str, NeuronDims] | Callable[[str, Any], Any] | None
"""The axes of kernels: one for all, by globs over paths, or as a function of path and
leaf; None for the convention."""


def resolve_axes(
    dims: Dims, path: str, leaf: Any, *, is_sparse: bool = True
) -> Axes | None:
    """Return the axes of the kernel at ``path``.

    Args:
      dims: None for Flax's convention (``default_axes``), a ``NeuronDims`` for every
        kernel, a mapping from globs over paths to ``NeuronDims``, the result of
        ``infer_dims``, or a function of path and leaf that returns a ``NeuronDims``.
        Leaves that a mapping or function omits (None) follow the convention.
      path: the leaf's canonical path.
      leaf: anything with a ``shape``.
      is_sparse: whether the leaf is known to be sparse. If it is not, ``dims`` that
        cover many leaves but do not fit this one are ignored: it follows the
        convention.

    Returns:
      The axes, or None for a leaf of fewer than two dimensions that ``dims`` does not
      mention.

    Raises:
      ValueError: if the axes exceed the leaf's rank or overlap.
    """
    chosen, is_named = chosen_dims(dims, path, leaf)
    if chosen is None:
        return default_axes(path, leaf)
    if not isinstance(chosen, NeuronDims):
        raise TypeError(f"dims must specify NeuronDims for {path!r}, got {chosen!r}")
    ndim = len(leaf.shape)
    by_name = kind_by_name(path)
    if chosen is dims and (ndim < 2 or by_name in ("bias", "scale")):
        return None  # a description of all kernels does not apply to these leaves
    problem = _misfit(dims, chosen, path, leaf)
    if problem and not is_named and (not is_sparse or ndim < 2 or by_name):
        return default_axes(path, leaf)
    if problem:
        raise ValueError(problem)
    reduction = tuple(sorted(a % ndim for a in chosen.reduction_axis))  # pyright: ignore
    output = tuple(sorted(a % ndim for a in chosen.output_axis))  # pyright: ignore
    batch = tuple(a for a in range(ndim) if a not in (*reduction, *output))
    return Axes(batch, reduction, output)


def default_axes(path: str, leaf: Any) -> Axes | None:
    """Return the axes of a kernel by Flax's convention, from its name and rank.

    Neurons lie along the last axis (``Dense``, ``Conv``, also grouped, and the output
    projection of attention); in the query, key and value projections of attention,
    along all but the first.

    Args:
      path: the leaf's canonical path.
      leaf: anything with a ``shape``.

    Returns:
      The axes; None for a leaf of fewer than two dimensions.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> kernel = jax.ShapeDtypeStruct((64, 4, 16), jnp.float32)
      >>> default_axes("attention/query/kernel", kernel)
      Axes(batch=(), reduction=(0,), output=(1, 2))
    """
    ndim = len(leaf.shape)
    if ndim < 2:
        return None
    first = input_axes(path, tuple(leaf.shape))
    return Axes((), tuple(range(first)), tuple(range(first, ndim)))


def chosen_dims(dims: Dims, path: str, leaf: Any) -> tuple[Any, bool]:
    """Return what ``dims`` specify for one leaf, and whether under its own path.

    Args:
      dims: as in ``resolve_axes``.
      path: the leaf's canonical path.
      leaf: anything with a ``shape``, for a function.

    Returns:
      A ``NeuronDims``, or None for the convention; and whether its key is the leaf's
      own path, not a glob.
    """
    if isinstance(dims, InferredDims):
        axes = dims.axes(path)
        return axes and NeuronDims(axes.reduction, axes.output), True
    if isinstance(dims, Mapping):
        for pattern, chosen in dims.items():
            if paths.matches(path, pattern):
                return chosen, pattern == path
        return None, False
    return (dims(path, leaf) if callable(dims) else dims), False


def _misfit(dims: Dims, chosen: NeuronDims, path: str, leaf: Any) -> str:
    """Return why a leaf cannot have these axes; empty if it can."""
    shape = tuple(leaf.shape)
    ndim = len(shape)
    if isinstance(dims, InferredDims):
        ranks = [len(group) for group in dims.axes(path) or ()]
        if sum(ranks) != ndim:
            return (
                f"dims were inferred for {path!r} with {sum(ranks)} axes, but it has "
                f"shape {shape}: infer them from the model that is trained"
            )
    named = (*chosen.reduction_axis, *chosen.output_axis)  # pyright: ignore
    if any(not -ndim <= a < ndim for a in named):
        return (
            f"{chosen} exceeds the rank of {path!r} with shape {shape}: give this leaf "
            "its own dims, before any other pattern that matches it"
        )
    if len({a % ndim for a in named}) != len(named):
        return f"{chosen} names an axis of {path!r} with shape {shape} twice"
    return ""


def check_patterns_fit(dims: Dims, leaves: Mapping[str, Any]) -> None:
    """Raise if the axes of a glob in ``dims`` fit none of the leaves it matches.

    Args:
      dims: as in ``resolve_axes``.
      leaves: the leaves by their canonical paths.

    Raises:
      ValueError: with the pattern and the leaves.
    """
    if isinstance(dims, InferredDims):
        if leaves and not any(map(dims.knows, leaves)):
            raise ValueError(
                f"dims were inferred for other parameters: for {', '.join(dims)}; the "
                f"paths are {', '.join(leaves)}"
            )
        return
    if not isinstance(dims, Mapping) or not leaves:
        return
    paths.check_patterns(dims, leaves, "dims")
    for pattern, chosen in dims.items():
        matched = [path for path in leaves if paths.matches(path, pattern)]
        if isinstance(chosen, NeuronDims) and all(
            _misfit(dims, chosen, path, leaves[path]) for path in matched
        ):
            shapes = [f"{path!r} {tuple(leaves[path].shape)}" for path in matched]
            raise ValueError(
                f"dims: the pattern {pattern!r} fits no leaf: {chosen} exceeds the "
                f"rank of {', '.join(shapes)}"
            )


def one_neuron(leaf: Any) -> Axes:
    """Return the axes of a leaf without neurons: all are inputs of a single neuron."""
    return Axes((), tuple(range(len(leaf.shape))), ())


def same_axes(one: Axes | None, other: Axes | None, shape: tuple[int, ...]) -> bool:
    """Tell whether axes of a kernel are the same, ignoring axes of size 1.

    Args:
      one: axes; None for a leaf without neurons.
      other: the axes to compare with.
      shape: the kernel's shape.

    Returns:
      Whether they are.

    Examples:
      >>> query = Axes((), (0,), (1, 2)), Axes((), (0, 1), (2,))
      >>> same_axes(*query, (64, 1, 64)), same_axes(*query, (64, 4, 16))
      (True, False)
    """

    def wide(axes: Axes | None) -> list[list[int]] | None:
        return axes and [[a for a in group if shape[a] > 1] for group in axes]

    return wide(one) == wide(other)


def counted_otherwise(
    path: str, axes: Axes | None, shape: tuple[int, ...], counts: Any
) -> str:
    """Return a warning if fan-ins in a state belong to other axes; empty if not.

    A topology keeps the fan-ins of its neurons with size 1 along their inputs. They
    reveal if a state is read without the topology's ``dims=``.

    Args:
      path: the kernel's path.
      axes: the assumed axes of its neurons.
      shape: the kernel's shape.
      counts: the fan-ins, as in ``TopologyState``.

    Returns:
      A sentence with the remedy.

    Examples:
      >>> counts = jnp.ones((3, 1, 8), jnp.int32)  # of a stack of three layers
      >>> counted_otherwise("w", Axes((0,), (1,), (2,)), (3, 4, 8), counts)
      ''
      >>> print(counted_otherwise("w", Axes((), (0, 1), (2,)), (3, 4, 8), counts))
      w: neurons are assumed to sum over axes (0, 1), but the ... over (1,): ...
    """
    summed = tuple(a for a, n in enumerate(counts.shape) if n == 1 < shape[a])
    if axes is None or summed == tuple(a for a in axes.reduction if shape[a] > 1):
        return ""
    return (
        f"{path}: neurons are assumed to sum over axes {axes.reduction}, but the "
        f"topology counts their inputs over {summed}: pass the topology's dims"
    )


def check_dims(dims: Dims) -> None:
    """Raise unless ``dims`` has one of the forms that ``resolve_axes`` accepts.

    Raises:
      TypeError: with the value and the accepted forms.
    """
    values = dims.values() if isinstance(dims, Mapping) else [dims]
    for value in values:
        if not (value is None or isinstance(value, NeuronDims) or callable(value)):
            raise TypeError(
                "dims must be None, a NeuronDims, a mapping from path patterns to "
                "NeuronDims (such as so.infer_dims returns), or a function of "
                f"(path, leaf), got {value!r}"
            )


def fan_in(mask: jax.Array, axes: Axes) -> jax.Array:
    """Count the active incoming weights of each neuron.

    Args:
      mask: bool array, True = active.
      axes: the kernel's axes.

    Returns:
      int32, the reduction axes kept with size 1.
    """
    return count_true(mask, axes.reduction, keepdims=True)


def correction_factor(fan_in: jax.Array, axes: Axes) -> jax.Array:
    """Return SparseOpt's factor per neuron, sqrt(1 - s_i) / sqrt(1 - s_avg).

    With s_i = 1 - fan_in_i / fan_in_dense and s_avg their mean over the layer, the
    dense fan-in cancels and sqrt(fan_in_i / mean(fan_in)) remains.

    Args:
      fan_in: int32, as returned by ``fan_in``.
      axes: the kernel's axes; the mean is over the output axes, so that each layer of
        a stack is corrected separately.

    Returns:
      float32 of the same shape. Exactly 1 if all neurons of a layer have the same
      fan-in; 0 for a neuron without inputs, and for all neurons of an empty layer.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541): the update rule.
    """
    # The mean as a deviation from the maximum is exact for equal fan-ins.
    largest = jnp.max(fan_in, axis=axes.output, keepdims=True)
    deviation = jnp.mean(
        (largest - fan_in).astype(jnp.float32), axis=axes.output, keepdims=True
    )
    mean = largest.astype(jnp.float32) - deviation
    ratio = fan_in.astype(jnp.float32) / jnp.where(mean > 0, mean, 1.0)
    return jnp.where(mean > 0, jnp.sqrt(ratio), 0.0)
