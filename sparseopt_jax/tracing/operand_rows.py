"""The inputs of a kernel in a multiplication, as vectors, one per sample."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from sparseopt_jax.tracing.kernel_layout import Factors, Layout, ordered, split

# Axes of an operand, each with the factors of the matching axis of the kernel.
_Matched = Sequence[tuple[int, Factors]]


class Rows(NamedTuple):
    """The inputs of a kernel.

    Attributes:
      of: maps the other operand to the array (lead factors, samples, fan_in), with the
        last axis in the order of the kernel's own axes.
      lead: factors of the kernel that index separate layers and groups.
      summed: factors that the multiplication sums over.
    """

    of: Callable[[jax.Array], jax.Array]
    lead: Factors
    summed: Factors


def product_rows(eqn: core.JaxprEqn, x: jax.Array, layout: Layout, side: int) -> Rows:
    """Return the inputs in a matrix product, with the lead and summed factors."""
    contracted, batch = eqn.params["dimension_numbers"]
    summed = [(i, layout.axes[k]) for i, k in _pairs(contracted, side)]
    lead = [(i, layout.axes[k]) for i, k in _pairs(batch, side)]
    return _rows(x.shape, lead, summed)


def _pairs(axes: Any, side: int) -> Sequence[tuple[int, int]]:
    """Return the axes of the inputs, each with the matching axis of the kernel."""
    return list(zip(axes[1 - side], axes[side], strict=True))


def convolution_rows(eqn: core.JaxprEqn, x: jax.Array, layout: Layout) -> Rows | str:
    """Return the same as ``product_rows``; the inputs are all patches."""
    if eqn.params["batch_group_count"] > 1:
        return "used in a convolution with batch groups"
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    outputs, inputs, *spatial = numbers.rhs_spec
    parts = split(layout.axes[outputs], groups)
    if parts is None:
        return "used in a grouped convolution whose groups cut its axes"
    window = [math.prod(f.size for f in layout.axes[axis]) for axis in spatial]

    # Axes: sample, group, channel within the group, window, position.
    def patches(x: jax.Array) -> jax.Array:
        # In float32 from the start: the patches come from a convolution that may round.
        found = jax.lax.conv_general_dilated_patches(
            jnp.transpose(x, numbers.lhs_spec).astype(jnp.float32),
            window,
            eqn.params["window_strides"],
            eqn.params["padding"],
            lhs_dilation=eqn.params["lhs_dilation"],
            rhs_dilation=eqn.params["rhs_dilation"],
            precision=jax.lax.Precision.HIGHEST,
        )
        return jnp.reshape(found, (found.shape[0], groups, -1, *window, places))

    places = math.prod(eqn.outvars[0].aval.shape[a] for a in numbers.out_spec[2:])  # pyright: ignore
    channels = x.shape[numbers.lhs_spec[1]] // groups
    shape = (x.shape[numbers.lhs_spec[0]], groups, channels, *window, places)
    lead = [(1, parts[0])] if groups > 1 else []
    summed = [(2 + i, layout.axes[a]) for i, a in enumerate((inputs, *spatial))]
    return _rows(shape, lead, summed, patches)


def _rows(
    shape: Sequence[int],
    lead: _Matched,
    summed: _Matched,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
) -> Rows:
    """Return inputs as vectors, one per sample, in the order of the kernel's axes.

    Args:
      shape: shape of the inputs.
      lead: their axes that index separate layers.
      summed: their axes that are summed over.
      prepare: returns the inputs, if the operand itself does not have this shape.

    Returns:
      The function that returns the rows, and the factors of each kind.
    """
    # If the kernel was repeated, the inputs of all its copies are samples.
    lead = [pair for pair in lead if any(f.axis >= 0 for f in pair[1])]
    lead_factors = tuple(f for _, factors in lead for f in factors)
    factors = tuple(f for _, factors in summed for f in factors)
    kept = [axis for axis, _ in (*lead, *summed)]
    samples = [axis for axis in range(len(shape)) if axis not in kept]
    order = [*(a for a, _ in lead), *samples, *(a for a, _ in summed)]
    first = len(lead_factors)

    def rows(x: jax.Array) -> jax.Array:
        array = jnp.transpose(x if prepare is None else prepare(x), order)
        sizes = [f.size for f in lead_factors], [f.size for f in factors]
        count = math.prod(shape[a] for a in samples)
        array = jnp.reshape(array, (*sizes[0], count, *sizes[1]))
        moved = [first + 1 + factors.index(f) for f in ordered(factors)]
        array = jnp.transpose(array, (*range(first + 1), *moved))
        return jnp.reshape(array, (*sizes[0], count, math.prod(sizes[1])))

    return Rows(rows, lead_factors, factors)
