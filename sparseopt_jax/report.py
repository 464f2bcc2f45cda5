"""Tables to read: what a topology will make sparse, and what has become of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sparseopt_jax import paths
from sparseopt_jax.masks import get_masks
from sparseopt_jax.neurons import Dims, correction_factor, fan_in, resolve_axes
from sparseopt_jax.topology import LeafPlan, Topology

_SIMULATED = (
    "Zeros are simulated by masks on dense arrays: parameters, moments and "
    "multiplications stay those of the dense network."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a topology will make of each leaf; prints as a table.

    Attributes:
      leaves: one ``LeafPlan`` per leaf, in tree order.
    """

    leaves: tuple[LeafPlan, ...]

    @property
    def active(self) -> int:
        """Active weights over all sparse leaves."""
        return sum(leaf.active or 0 for leaf in self.leaves)

    @property
    def size(self) -> int:
        """Weights in all sparse leaves, active or not."""
        return sum(_size(leaf) for leaf in self.leaves if leaf.layer)

    def __str__(self) -> str:
        rows = [_plan_row(leaf) for leaf in self.leaves]
        dense = sum(_size(leaf) for leaf in self.leaves if not leaf.layer)
        share = f"{self.active / self.size:.2%}" if self.size else "-"
        return "\n".join(
            [
                _table(("leaf", "shape", "density", "active", "dense because"), rows),
                f"{self.active:,} of {self.size:,} weights active in sparse leaves "
                f"({share}); {dense:,} parameters dense.",
                _SIMULATED,
            ]
        )

    __repr__ = __str__


def plan(params: Any, topology: Topology) -> Plan:
    """What a topology will make sparse, how much, and why the rest is not.

    Args:
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.
      topology: from ``static``, ``set_``, ``rigl``.

    Returns:
      A ``Plan``: print it before training.

    Raises:
      ValueError: where the topology does not fit the parameters.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> kernel = jax.ShapeDtypeStruct((4, 8), jnp.float32)
      >>> bias = jax.ShapeDtypeStruct((8,), jnp.float32)
      >>> print(so.plan({"kernel": kernel, "bias": bias}, so.static(0.75)))
      leaf    shape  density  active  dense because
      bias    8            -       -  fewer than two dimensions
      kernel  4x8     25.00%       8
      8 of 32 weights active in sparse leaves (25.00%); 8 parameters dense.
      Zeros are simulated by masks on dense arrays: ...
    """
    return Plan(tuple(topology.leaves(params)))


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """A sparse leaf as it is now.

    Attributes:
      path: its canonical path.
      shape: its shape.
      active: active weights.
      fan_in: least, mean and largest fan-in; None for a leaf without neurons.
      factor: least and largest of SparseOpt's factors; None likewise.
      dead: neurons without inputs.
    """

    path: str
    shape: tuple[int, ...]
    active: int
    fan_in: tuple[int, float, int] | None
    factor: tuple[float, float] | None
    dead: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """A sparse network as it is now; prints as a table.

    Attributes:
      layers: one ``LayerSummary`` per sparse leaf, in tree order.
      parameters: number of all parameters.
      mask_bytes: memory that the masks take.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    mask_bytes: int

    @property
    def active(self) -> int:
        """Active weights over all sparse leaves."""
        return sum(layer.active for layer in self.layers)

    @property
    def size(self) -> int:
        """Weights in all sparse leaves, active or not."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    def __str__(self) -> str:
        head = ("leaf", "shape", "density", "active", "fan-in", "factor", "dead")
        rows = [_summary_row(layer) for layer in self.layers]
        return "\n".join(
            [
                _table(head, rows),
                f"{self.active:,} of {self.size:,} weights active in sparse leaves "
                f"({self.active / self.size:.2%}); {self.parameters:,} parameters in "
                f"all; masks take {self.mask_bytes:,} bytes.",
                _SIMULATED,
            ]
        )

    __repr__ = __str__


def summary(params: Any, opt_state: Any, *, dims: Dims = None) -> Summary:
    """What has become of each sparse layer.

    Args:
      params: the weights.
      opt_state: an optimizer state that holds masks.
      dims: the axes of kernels that do not follow the Flax convention, as given to the
        topology.

    Returns:
      A ``Summary``: print it. Fan-in is given as least, mean, largest; the factor is
      SparseOpt's, least and largest.

    Raises:
      ValueError: if ``opt_state`` holds no masks.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> mask = jnp.array([[True, True], [True, False], [True, False]])
      >>> tx = so.sparsify(optax.sgd(0.1), so.static(masks={"kernel": mask}))
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> print(so.summary(params, tx.init(params)))
      leaf    shape  density  active     fan-in      factor  dead
      kernel  3x2     66.67%       4  1 / 2.0 / 3  0.71-1.22     0
      4 of 6 weights active in sparse leaves (66.67%); 6 parameters in all; masks ...
      Zeros are simulated by masks on dense arrays: ...
    """
    masks = [
        (path, mask)
        for path, mask in paths.flatten_with_paths(get_masks(opt_state))
        if not paths.is_hole(mask)
    ]
    return Summary(
        layers=tuple(_summarize(path, mask, dims) for path, mask in masks),
        parameters=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params)),
        mask_bytes=sum(mask.nbytes for _, mask in masks),
    )


def _summarize(path: str, mask: jax.Array, dims: Dims) -> LayerSummary:
    axes = resolve_axes(dims, path, mask)
    if axes is None:
        return LayerSummary(path, mask.shape, int(mask.sum()), None, None, 0)
    fan_ins = fan_in(mask, axes)
    factors = np.asarray(correction_factor(fan_ins, axes))
    counts = np.asarray(fan_ins)
    return LayerSummary(
        path=path,
        shape=mask.shape,
        active=int(counts.sum(dtype=np.int64)),
        fan_in=(int(counts.min()), float(counts.mean()), int(counts.max())),
        factor=(float(factors.min()), float(factors.max())),
        dead=int((counts == 0).sum()),
    )


def _size(leaf: LeafPlan) -> int:
    return math.prod(leaf.leaf.shape)


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _plan_row(leaf: LeafPlan) -> tuple[str, ...]:
    shape = _shape(leaf.leaf.shape)
    if leaf.layer is None or leaf.active is None:
        return leaf.path, shape, "-", "-", leaf.why_dense
    density = f"{leaf.active / _size(leaf):.2%}"
    return leaf.path, shape, density, f"{leaf.active:,}", ""


def _summary_row(layer: LayerSummary) -> tuple[str, ...]:
    fan_in = factor = "-"
    if layer.fan_in is not None and layer.factor is not None:
        least, mean, largest = layer.fan_in
        fan_in = f"{least} / {mean:.1f} / {largest}"
        factor = f"{layer.factor[0]:.2f}-{layer.factor[1]:.2f}"
    density = f"{layer.active / math.prod(layer.shape):.2%}"
    return (
        *(layer.path, _shape(layer.shape), density, f"{layer.active:,}"),
        *(fan_in, factor, str(layer.dead)),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns: numbers to the right, words to the left."""
    words = {"leaf", "shape", "dense because"}
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if name in words else cell.rjust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)
