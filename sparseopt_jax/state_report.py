"""The table to read during training: what has become of each sparse layer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparseopt_jax import flops, paths, tables
from sparseopt_jax.active_weights import ActiveIndices
from sparseopt_jax.masks import find_states, get_masks
from sparseopt_jax.neurons import Dims, correction_factor, fan_in, resolve_axes
from sparseopt_jax.optimizer_bytes import optimizer_bytes


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
      neurons: its neurons, over all layers of a stack; 0 for a leaf without.
      copies: how many layers it stacks, 1 if it is no stack.
      collapsed: how many of these have no active weight.
    """

    path: str
    shape: tuple[int, ...]
    active: int
    fan_in: tuple[int, float, int] | None
    factor: tuple[float, float] | None
    dead: int
    neurons: int
    copies: int
    collapsed: int

    @property
    def density(self) -> float:
        """Fraction of active weights."""
        size = math.prod(self.shape)
        return self.active / size if size else math.nan


@dataclasses.dataclass(frozen=True, repr=False)
class Summary(tables.Printed):
    """A sparse network as it is now; prints as a table.

    Attributes:
      layers: one ``LayerSummary`` per sparse leaf, in tree order.
      parameters: number of all parameters.
      mask_bytes: memory that the masks take, as they are stored, with those that a
        topology keeps of the past.
      state_bytes: memory that the rest of the optimizer state takes: moments above all.
      forward_flops: FLOPs of the sparse and the dense network's forward pass, per
        example.
      positions: the numbers of output positions that were given, by globs over paths.
      compact: whether the optimizer keeps the active weights' state alone.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    mask_bytes: int
    state_bytes: int
    forward_flops: tuple[float, float]
    positions: Mapping[str, int]
    compact: bool

    @property
    def active(self) -> int:
        """Active weights over all sparse leaves."""
        return sum(layer.active for layer in self.layers)

    @property
    def size(self) -> int:
        """Weights in all sparse leaves, active or not."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def inference_flops(self) -> float:
        """FLOPs of a forward pass in theory, as a fraction of the dense network's."""
        return flops.inference_flops(*self.forward_flops)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Paths of the leaves that have a layer without any active weight."""
        return tuple(layer.path for layer in self.layers if layer.collapsed)

    @property
    def mostly_dead(self) -> tuple[str, ...]:
        """Paths of the leaves in which more than half of the neurons have no inputs."""
        return tuple(
            layer.path for layer in self.layers if 2 * layer.dead > layer.neurons
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the masks, a sentence each; empty if nothing is."""
        collapsed = [
            f"{layer.path} ({layer.collapsed} of {layer.copies} layers)"
            if layer.copies > 1
            else layer.path
            for layer in self.layers
            if layer.path in self.collapsed
        ]
        # Of a leaf that has nothing left the first sentence says enough.
        dead = [
            f"{layer.path} ({layer.dead} of {layer.neurons})"
            for layer in self.layers
            if layer.path in self.mostly_dead and layer.active
        ]
        said = []
        if collapsed:
            said.append(f"no active weight is left in {', '.join(collapsed)}")
        if dead:
            said.append(f"more than half of the neurons are dead in {', '.join(dead)}")
        return tuple(said)

    def page(self) -> tables.Page:
        """The table, and what stands below it."""
        share = tables.percent(self.active / self.size if self.size else math.nan)
        wrong = {*self.collapsed, *self.mostly_dead}
        return tables.Page(
            head=("layer", "shape", "density", "active", "fan-in", "factor", "dead"),
            rows=tuple(map(_row, self.layers)),
            styles=tuple("red" if x.path in wrong else "" for x in self.layers),
            notes=(
                f"{self.active:,} of {self.size:,} weights active in sparse leaves "
                f"({share}); {self.parameters:,} parameters in all.",
                f"Masks take {tables.memory(self.mask_bytes)}, the rest of the "
                f"optimizer state (moments, counters) "
                f"{tables.memory(self.state_bytes)}.",
                flops.note(self.inference_flops, None, self.positions),
                tables.COMPACT if self.compact else tables.SIMULATED,
            ),
            warnings=self.warnings,
        )


def summary(
    params: Any,
    opt_state: Any,
    *,
    dims: Dims = None,
    positions: Mapping[str, int] | None = None,
) -> Summary:
    """What has become of each sparse layer.

    Args:
      params: the weights.
      opt_state: an optimizer state that holds masks.
      dims: the axes of kernels that do not follow the Flax convention, as given to the
        topology.
      positions: as in ``plan``.

    Returns:
      A ``Summary``: print it, with ``rich.print`` for colours. Fan-in is given as
      least, mean, largest; the factor is SparseOpt's, least and largest. It warns of
      layers without any active weight, and of those with more than half of their
      neurons dead.

    Raises:
      TypeError: if ``positions`` is no mapping.
      ValueError: if ``opt_state`` holds no masks; where ``positions`` matches no leaf,
        or is no positive integer.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> mask = jnp.array([[True, True], [True, False], [True, False]])
      >>> tx = so.sparsify(optax.sgd(0.1), so.static(masks={"kernel": mask}))
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> print(so.summary(params, tx.init(params)))
      layer   shape  density  active     fan-in      factor  dead
      kernel  3x2     66.67%       4  1 / 2.0 / 3  0.71-1.22     0
      4 of 6 weights active in sparse leaves (66.67%); 6 parameters in all.
      Masks take 6 bytes, the rest of the optimizer state (moments, counters) ...
      FLOPs in theory, of the dense network's: 66.67% for inference ...
      Sparsity is simulated on dense arrays: parameters, moments and ...
    """
    masks = paths.leaves_by_path(get_masks(opt_state))
    leaves = {
        path: leaf
        for path, leaf in paths.flatten_with_paths(params)
        if hasattr(leaf, "shape")
    }
    flops.check_positions(positions, leaves)
    layers = {path: _summarize(path, mask, dims) for path, mask in masks.items()}
    sparse = dense = 0
    for path, leaf in leaves.items():
        if path in layers or flops.is_multiplied(
            path, leaf, resolve_axes(dims, path, leaf, is_sparse=False)
        ):
            count = flops.positions_of(path, positions)
            active = layers[path].active if path in layers else leaf.size
            sparse += flops.forward_flops(active, count)
            dense += flops.forward_flops(leaf.size, count)
    mask_bytes = sum(
        optimizer_bytes(
            (state.masks, state.topology_state.explored, state.topology_state.turned)
        )
        for state in find_states(opt_state)
    )
    return Summary(
        layers=tuple(layers.values()),
        parameters=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params)),
        mask_bytes=mask_bytes,
        state_bytes=optimizer_bytes(opt_state) - mask_bytes,
        forward_flops=(sparse, dense),
        positions=dict(positions or {}),
        compact=any(
            isinstance(state.masks, ActiveIndices) for state in find_states(opt_state)
        ),
    )


def _summarize(path: str, mask: jax.Array, dims: Dims) -> LayerSummary:
    axes = resolve_axes(dims, path, mask)
    if axes is None:
        active = int(mask.sum())
        return LayerSummary(
            path=path,
            shape=mask.shape,
            active=active,
            fan_in=None,
            factor=None,
            dead=0,
            neurons=0,
            copies=1,
            collapsed=int(not active),
        )
    fan_ins = fan_in(mask, axes)
    factors = np.asarray(correction_factor(fan_ins, axes))
    counts = np.asarray(fan_ins)
    by_layer = counts.sum(axis=axes.layer, dtype=np.int64)
    return LayerSummary(
        path=path,
        shape=mask.shape,
        active=int(by_layer.sum()),
        fan_in=(int(counts.min()), float(counts.mean()), int(counts.max())),
        factor=(float(factors.min()), float(factors.max())),
        dead=int((counts == 0).sum()),
        neurons=counts.size,
        copies=by_layer.size,
        collapsed=int((by_layer == 0).sum()),
    )


def _row(layer: LayerSummary) -> tuple[str, ...]:
    fan_in = factor = "-"
    if layer.fan_in is not None and layer.factor is not None:
        least, mean, largest = layer.fan_in
        fan_in = f"{least} / {mean:.1f} / {largest}"
        factor = f"{layer.factor[0]:.2f}-{layer.factor[1]:.2f}"
    density = tables.percent(layer.density)
    return (
        *(layer.path, tables.shape(layer.shape), density, f"{layer.active:,}"),
        *(fan_in, factor, str(layer.dead)),
    )
