"""Which axes of a kernel are a neuron's inputs, and what follows from its fan-in."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax import paths
from sparseopt_jax.counting import count_true


@dataclasses.dataclass(frozen=True)
class NeuronDims:
    """Which axes of a kernel a neuron sums over and which tell neurons apart.

    Axes that are named in neither are a batch: a stack of separate layers, as
    ``nn.scan``, vmapped ensembles and experts hold them.

    Attributes:
      reduction_axis: axis or axes of a neuron's incoming weights.
      output_axis: axis or axes along which the neurons lie.

    Raises:
      ValueError: if an axis is named twice.

    Examples:
      An attention's query kernel of shape ``(features, heads, head_dim)``, and a dense
      kernel stacked over layers by ``nn.scan``, ``(layers, fan_in, out)``:

      >>> NeuronDims(reduction_axis=0, output_axis=(1, 2))
      NeuronDims(reduction_axis=(0,), output_axis=(1, 2))
      >>> NeuronDims(1, 2)
      NeuronDims(reduction_axis=(1,), output_axis=(2,))
    """

    reduction_axis: int | tuple[int, ...] = 0
    output_axis: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        for name in ("reduction_axis", "output_axis"):
            axes = getattr(self, name)
            axes = (axes,) if isinstance(axes, int) else tuple(axes)
            object.__setattr__(self, name, axes)
            if not axes or not all(isinstance(a, int) for a in axes):
                raise ValueError(f"{name} must name at least one axis, got {axes}")
        both = (*self.reduction_axis, *self.output_axis)  # pyright: ignore
        if len(set(both)) != len(both):
            raise ValueError(f"{self} names an axis twice")


Dims = NeuronDims | Mapping[str, NeuronDims] | Callable[[str, Any], Any] | None


class Axes(NamedTuple):
    """The axes of one kernel, non-negative: stack, a neuron's inputs, the neurons."""

    batch: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def layer(self) -> tuple[int, ...]:
        """All axes of a single layer of the stack."""
        return tuple(sorted((*self.reduction, *self.output)))


def resolve_axes(dims: Dims, path: str, leaf: Any) -> Axes | None:
    """The axes of the kernel at ``path``.

    Args:
      dims: None for the Flax convention (the last axis holds the neurons, all others
        are their inputs: Dense and Conv, grouped too), a ``NeuronDims`` for every
        kernel, a mapping from globs over paths to ``NeuronDims``, or a function of
        path and leaf that returns one. What a mapping or function leaves out (None)
        follows the convention.
      path: the leaf's canonical path.
      leaf: anything with a ``shape``.

    Returns:
      The axes, or None for a leaf of fewer than two dimensions that ``dims`` does not
      mention.

    Raises:
      ValueError: if the axes exceed the leaf's rank or overlap.
    """
    if isinstance(dims, Mapping):
        chosen = paths.first_match(path, dims)
    elif callable(dims):
        chosen = dims(path, leaf)
    else:
        chosen = dims
    ndim = len(leaf.shape)
    if chosen is None:
        if ndim < 2:
            return None
        return Axes((), tuple(range(ndim - 1)), (ndim - 1,))
    if not isinstance(chosen, NeuronDims):
        raise TypeError(f"dims must give NeuronDims for {path!r}, got {chosen!r}")
    if chosen is dims and (ndim < 2 or paths.kind_by_name(path) in ("bias", "scale")):
        return None  # one description for all kernels: these are not meant
    named = (*chosen.reduction_axis, *chosen.output_axis)  # pyright: ignore
    if any(not -ndim <= a < ndim for a in named):
        raise ValueError(
            f"{chosen} exceeds the rank of {path!r} with shape {tuple(leaf.shape)}"
        )
    reduction = tuple(sorted(a % ndim for a in chosen.reduction_axis))  # pyright: ignore
    output = tuple(sorted(a % ndim for a in chosen.output_axis))  # pyright: ignore
    if len({*reduction, *output}) != len(named):
        raise ValueError(
            f"{chosen} names an axis of {path!r} with shape {tuple(leaf.shape)} twice"
        )
    batch = tuple(a for a in range(ndim) if a not in (*reduction, *output))
    return Axes(batch, reduction, output)


def one_neuron(leaf: Any) -> Axes:
    """The axes of a leaf without neurons of its own: the inputs of a single one."""
    return Axes((), tuple(range(len(leaf.shape))), ())


def check_dims(dims: Dims) -> None:
    """Raises unless ``dims`` is one of the forms that ``resolve_axes`` takes.

    Raises:
      TypeError: with the value, and the forms there are.
    """
    values = dims.values() if isinstance(dims, Mapping) else [dims]
    for value in values:
        if not (value is None or isinstance(value, NeuronDims) or callable(value)):
            raise TypeError(
                "dims must be None, a NeuronDims, a mapping from path patterns to "
                f"NeuronDims, or a function of (path, leaf), got {value!r}"
            )


def fan_in(mask: jax.Array, axes: Axes) -> jax.Array:
    """The number of active incoming weights of each neuron.

    Args:
      mask: bool array, True = active.
      axes: the kernel's axes.

    Returns:
      int32, the reduction axes kept with size 1.
    """
    return count_true(mask, axes.reduction, keepdims=True)


def correction_factor(fan_in: jax.Array, axes: Axes) -> jax.Array:
    """SparseOpt's factor per neuron, sqrt(1 - s_i) / sqrt(1 - s_avg).

    With s_i = 1 - fan_in_i / fan_in_dense and s_avg their mean over the layer, the
    dense fan-in cancels and sqrt(fan_in_i / mean(fan_in)) remains.

    Args:
      fan_in: int32, as ``fan_in`` gives it.
      axes: the kernel's axes; the mean is over the output axes, so that each layer of
        a stack is corrected by itself.

    Returns:
      float32 of the same shape. Exactly 1 where all neurons of a layer have the same
      fan-in; 0 for a neuron without inputs, and throughout a layer without weights.

    References:
      Adnan et al., SparseOpt, 2026 (arXiv 2605.27541): the update rule.
    """
    # The mean as a deviation from the largest: equal fan-ins give it without rounding.
    largest = jnp.max(fan_in, axis=axes.output, keepdims=True)
    deviation = jnp.mean(
        (largest - fan_in).astype(jnp.float32), axis=axes.output, keepdims=True
    )
    mean = largest.astype(jnp.float32) - deviation
    return jnp.where(mean > 0, jnp.sqrt(fan_in / jnp.where(mean > 0, mean, 1.0)), 0.0)
