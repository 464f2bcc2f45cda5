"""Statistics of the inputs that a kernel multiplies, and kernels as matrices."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from sparseopt_jax.layers.neuron_dims import Axes
from sparseopt_jax.tracing.kernel_layout import Use


class Moments(NamedTuple):
    """Sums over samples, which are vectors of ``fan_in`` numbers; all float32.

    Leading axes, if any, are separate sets of samples.

    Attributes:
      count: scalar, the number of samples.
      mean: (..., fan_in).
      deviation: (..., fan_in), sum of the squared distances from the mean, which keeps
        the digits that a difference of sums would lose.
      gram: (..., fan_in, fan_in), sum of x x^T; None if it was not requested.
    """

    count: jax.Array
    mean: jax.Array
    deviation: jax.Array
    gram: jax.Array | None


def moments_of(rows: jax.Array, with_gram: bool) -> Moments:
    """Return the moments of samples.

    Args:
      rows: (..., samples, fan_in).
      with_gram: whether to compute the Gram matrix.

    Returns:
      Their moments, in float32 for samples of any dtype.
    """
    rows = rows.astype(jnp.float32)
    count = rows.shape[-2]
    mean = jnp.sum(rows, -2) / max(count, 1)
    return Moments(
        count=jnp.float32(count),
        mean=mean,
        deviation=jnp.sum(jnp.square(rows - mean[..., None, :]), -2),
        gram=jnp.einsum(
            "...ni,...nj->...ij", rows, rows, precision=jax.lax.Precision.HIGHEST
        )
        if with_gram
        else None,
    )


def add_moments(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two sets of samples; one of them may be empty."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)
    step = b.mean - a.mean
    weight = a.count * share
    # Not 0 times a square that may be infinite.
    between = jnp.where(weight > 0, jnp.square(step) * weight, jnp.zeros_like(step))
    return Moments(
        count=count,
        mean=a.mean + step * share,
        deviation=a.deviation + b.deviation + between,
        gram=None if a.gram is None or b.gram is None else a.gram + b.gram,
    )


def join_moments(stacked: Moments) -> Moments:
    """Combine moments along the first axis, each of the same number of samples."""
    mean = jnp.sum(stacked.mean, 0) / max(len(stacked.mean), 1)
    spread = jnp.sum(jnp.square(stacked.mean - mean), 0)
    each = common_count(stacked)
    return Moments(
        count=jnp.sum(stacked.count),
        mean=mean,
        deviation=jnp.sum(stacked.deviation, 0) + each * spread,
        gram=None if stacked.gram is None else jnp.sum(stacked.gram, 0),
    )


def common_count(stacked: Moments) -> jax.Array:
    """Return the number of samples of each set along the first axis; 0 without sets."""
    return jnp.max(stacked.count, initial=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Inputs:
    """Statistics of the inputs of one kernel.

    ``fan_in`` counts the entries of the reduction axes, flattened in their order.
    Statistics begin with the stack axes of the kernel, followed by one axis for the
    groups of a grouped convolution.

    Attributes:
      moments: the sums.
      shape: the kernel's shape.
      axes: the axes that the model sums over, and the others.
      groups: number of groups of neurons with separate inputs; 1 if all share them.
    """

    moments: Moments
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    axes: Axes = dataclasses.field(metadata={"static": True})
    groups: int = dataclasses.field(metadata={"static": True})

    @property
    def count(self) -> jax.Array:
        """Number of samples; float32, so that it cannot overflow."""
        return self.moments.count

    @property
    def mean(self) -> jax.Array:
        """Mean of each input: (..., fan_in)."""
        return self.moments.mean

    @property
    def variance(self) -> jax.Array:
        """Variance of each input, with the count as divisor: (..., fan_in)."""
        return self.moments.deviation / self.count

    @property
    def norm(self) -> jax.Array:
        """Euclidean norm of each input over all samples: (..., fan_in)."""
        mean, count = self.moments.mean, self.count
        return jnp.sqrt(self.moments.deviation + count * jnp.square(mean))

    @property
    def gram(self) -> jax.Array | None:
        """Sum of x x^T over all samples: (..., fan_in, fan_in)."""
        return self.moments.gram

    def matrices(self, kernel: jax.Array) -> jax.Array:
        """Return the kernel as one matrix for each set of inputs.

        Args:
          kernel: an array of ``shape``; its output axes may have size 1.

        Returns:
          (sets, fan_in, neurons).
        """
        batch, reduction, output = self.axes
        x = jnp.transpose(kernel, (*batch, *output, *reduction))
        fan_in = math.prod(kernel.shape[a] for a in reduction)
        neurons = math.prod(kernel.shape[a] for a in output)
        return jnp.swapaxes(
            jnp.reshape(x, (-1, neurons // self.groups, fan_in)), -1, -2
        )

    def from_matrices(self, matrices: jax.Array) -> jax.Array:
        """Invert ``matrices``."""
        order = (*self.axes.batch, *self.axes.output, *self.axes.reduction)
        x = jnp.swapaxes(matrices, -1, -2)
        x = jnp.reshape(x, [self.shape[a] for a in order])
        return jnp.transpose(x, [order.index(a) for a in range(len(order))])

    def flat(self, statistic: jax.Array, trailing: int = 1) -> jax.Array:
        """Return a statistic with all sets of inputs along the first axis.

        Args:
          statistic: one of the statistics above.
          trailing: number of axes of a single set: 1, or 2 for a Gram matrix.

        Returns:
          (sets, fan_in) or (sets, fan_in, fan_in).
        """
        return jnp.reshape(statistic, (-1, *statistic.shape[-trailing:]))

    def per_weight(self, statistic: jax.Array) -> jax.Array:
        """Assign a statistic of each input to every weight that multiplies it.

        Args:
          statistic: (..., fan_in).

        Returns:
          Array that broadcasts against the kernel.
        """
        sizes = [1 if a in self.axes.output else n for a, n in enumerate(self.shape)]
        if self.groups > 1:
            flat = self.flat(statistic)[..., None]
            neurons = math.prod(self.shape[a] for a in self.axes.output)
            shape = (*flat.shape[:2], neurons // self.groups)
            return self.from_matrices(jnp.broadcast_to(flat, shape))
        order = (*self.axes.batch, *self.axes.output, *self.axes.reduction)
        x = jnp.reshape(statistic, [sizes[a] for a in order])
        return jnp.transpose(x, [order.index(a) for a in range(len(order))])


def inputs_of(moments: Moments, use: Use, shape: tuple[int, ...]) -> Inputs:
    """Return statistics from moments, with leading axes in the kernel's order.

    Args:
      moments: their leading axes are the factors in ``use.lead``; one axis may hold
        several factors.
      use: how the model uses the kernel's axes.
      shape: the kernel's shape.

    Returns:
      The statistics.
    """
    order = use.lead_order
    sizes = [use.lead[i].size for i in order]
    stack = [shape[axis] for axis in use.axes.batch]
    groups = [use.groups] if use.groups > 1 else []
    assert math.prod(sizes) == math.prod((*stack, *groups))

    def arrange(trailing: int, x: jax.Array) -> jax.Array:
        last = x.shape[x.ndim - trailing :]
        x = jnp.reshape(x, (*(f.size for f in use.lead), *last))
        x = jnp.transpose(x, (*order, *range(len(order), x.ndim)))
        return jnp.reshape(x, (*stack, *groups, *last))

    vector, matrix = functools.partial(arrange, 1), functools.partial(arrange, 2)
    return Inputs(
        moments=Moments(
            count=moments.count,
            mean=vector(moments.mean),
            deviation=vector(moments.deviation),
            gram=None if moments.gram is None else matrix(moments.gram),
        ),
        shape=shape,
        axes=use.axes,
        groups=use.groups,
    )


def check_inputs(path: str, kernel: Any, inputs: Inputs) -> None:
    """Raise unless the statistics belong to a kernel of this shape.

    Raises:
      ValueError: with the path and both shapes.
    """
    if tuple(kernel.shape) != inputs.shape:
        raise ValueError(
            f"the calibration of {path!r} was made with shape {inputs.shape}, but the "
            f"parameter has shape {tuple(kernel.shape)}: calibrate the model that you "
            "prune"
        )


def check_numbers(path: str, inputs: Inputs, method: str) -> None:
    """Raise unless the statistics come from samples and are finite.

    Traced statistics are not checked.

    Raises:
      ValueError: with the path and the remedy.
    """
    moments = inputs.moments
    if isinstance(moments.count, Tracer):
        return
    if not float(moments.count) > 0:
        raise ValueError(
            f"{method}: the statistics of the inputs of {path!r} come from no samples: "
            "calibrate with batches that are not empty"
        )
    parts = [inputs.mean, inputs.norm, inputs.gram]
    if not all(bool(jnp.all(jnp.isfinite(x))) for x in parts if x is not None):
        raise ValueError(
            f"{method}: the statistics of the inputs of {path!r} are not finite, "
            "because some inputs are NaN or infinite, or their squares overflow "
            "float32: calibrate without these batches, or with smaller inputs"
        )
