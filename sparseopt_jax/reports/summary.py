"""The table to read during training: the current state of each sparse layer."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sparseopt_jax.arguments.checks import check_concrete, check_fit, check_single
from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.layers.leaf_kinds import leaf_kinds
from sparseopt_jax.layers.neurons import (
    Dims,
    correction_factor,
    counted_otherwise,
    fan_in,
    resolve_axes,
)
from sparseopt_jax.masks.active_weights import ActiveIndices
from sparseopt_jax.masks.compact_kernel import dense_arrays, holds_compact
from sparseopt_jax.masks.state import (
    check_order,
    find_states,
    get_masks,
    stays_dense,
)
from sparseopt_jax.reports import flops, tables
from sparseopt_jax.reports.optimizer_bytes import optimizer_bytes
from sparseopt_jax.reports.state_warnings import DEAD_FRACTION, state_warnings
from sparseopt_jax.trees import paths


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """The current state of a sparse leaf.

    Attributes:
      path: its canonical path.
      shape: its shape.
      active: number of active weights.
      fan_in: least, mean and largest fan-in; None for a leaf without neurons.
      factor: least and largest of SparseOpt's factors; None for a leaf without neurons.
      dead: number of neurons without active inputs.
      neurons: number of neurons, over all layers of a stack; 0 for a leaf without.
      copies: number of layers that it stacks; 1 if it is not a stack.
      collapsed: number of these layers without active weights.
      inactive_nonzero: inactive weights that are not zero; 0 if ``stays_dense``.
      stays_dense: whether masks apply to the forward pass only, as with ``ste``, so
        that inactive weights are meant to stay.
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
    inactive_nonzero: int = 0
    stays_dense: bool = False

    @property
    def inactive(self) -> int:
        """Count inactive weights."""
        return math.prod(self.shape) - self.active

    @property
    def is_even(self) -> bool:
        """Tell whether all living neurons have the same fan-in, more than one."""
        alive = self.neurons - self.dead
        if self.fan_in is None or not alive:
            return False
        return self.fan_in[2] > 1 and self.fan_in[2] * alive == self.active

    @property
    def density(self) -> float:
        """Return the fraction of active weights."""
        size = math.prod(self.shape)
        return self.active / size if size else math.nan


@dataclasses.dataclass(frozen=True, repr=False)
class Summary(tables.Printed):
    """The current state of a sparse network; prints as a table.

    Attributes:
      layers: one ``LayerSummary`` per sparse leaf, in tree order.
      parameters: number of all parameters.
      mask_bytes: bytes of the masks as stored, including earlier masks that a topology
        keeps.
      state_bytes: bytes of the rest of the optimizer state, mostly moments.
      forward_flops: FLOPs of the sparse and the dense forward pass, per example.
      positions: the given numbers of output positions, by globs over paths.
      compact: whether the optimizer keeps state for active weights only.
      axes_warnings: problems with the axes along which neurons are counted.
      compact_params: whether any parameters are compact.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    mask_bytes: int
    state_bytes: int
    forward_flops: tuple[float, float]
    positions: Mapping[str, int]
    compact: bool
    axes_warnings: tuple[str, ...] = ()
    compact_params: bool = False

    @property
    def active(self) -> int:
        """Count active weights over all sparse leaves."""
        return sum(layer.active for layer in self.layers)

    @property
    def size(self) -> int:
        """Count weights in all sparse leaves, active or not."""
        return sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def inference_flops(self) -> float:
        """Return the theoretical FLOPs of a forward pass relative to the dense one."""
        return flops.inference_flops(*self.forward_flops)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Return the paths of leaves with a layer without active weights."""
        return tuple(layer.path for layer in self.layers if layer.collapsed)

    @property
    def dying(self) -> tuple[str, ...]:
        """Return the paths of leaves with a fifth of their neurons dead, or more."""
        return tuple(
            layer.path
            for layer in self.layers
            if layer.dead and layer.dead >= DEAD_FRACTION * layer.neurons
        )

    @property
    def mostly_dead(self) -> tuple[str, ...]:
        """Return the paths of leaves with more than half of their neurons dead."""
        return tuple(
            layer.path for layer in self.layers if 2 * layer.dead > layer.neurons
        )

    @property
    def inactive_nonzero(self) -> int:
        """Count inactive weights that are not zero but should be."""
        return sum(layer.inactive_nonzero for layer in self.layers)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return problems with masks, weights or axes, as sentences with remedies."""
        return (*state_warnings(self.layers), *self.axes_warnings)

    @property
    def _saved(self) -> str:
        if self.compact_params:
            return tables.BLOCKS
        return tables.COMPACT if self.compact else tables.SIMULATED

    def page(self) -> tables.Page:
        """Return the table, and the notes below it."""
        share = tables.percent(self.active / self.size if self.size else math.nan)
        wrong = {*self.collapsed, *self.dying}
        wrong |= {layer.path for layer in self.layers if layer.inactive_nonzero}
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
                self._saved,
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
    """Show the current state of each sparse layer.

    Args:
      params: the weights, dense or compact.
      opt_state: an optimizer state that holds masks.
      dims: the axes of kernels that do not follow the Flax convention, as given to the
        topology.
      positions: as in ``plan``.

    Returns:
      A ``Summary``: print it, with ``rich.print`` for colours. Fan-ins are least, mean
      and largest; factors are SparseOpt's, least and largest. It warns of layers
      without active weights; of layers in which a fifth of the neurons or more are
      dead, without active inputs; of inactive weights that are not zero, unless the
      topology keeps weights dense (``ste``, ``sr_ste``, ``top_kast``); and of ``dims``
      that differ from the topology's.

    Raises:
      TypeError: if ``positions`` is not a mapping, or under ``jax.jit``; use
        ``metrics`` there.
      ValueError: if ``opt_state`` holds no masks, masks of other parameters, or several
        stacked replicas; if ``positions`` matches no leaf, or contains anything but
        positive integers.

    Note:
      ``min_fan_in`` keeps neurons alive with structures of single weights. ``Channel``
      and ``srigl`` remove neurons on purpose, which masks alone cannot distinguish from
      dying, so the warning names both.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> mask = jnp.array([[True, True], [True, False], [True, False]])
      >>> tx = so.sparsify(optax.sgd(0.1), so.static(masks={"kernel": mask}))
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> state = tx.init(params)
      >>> print(so.summary(so.apply_masks(params, state), state))
      layer   shape  density  active     fan-in      factor  dead
      kernel  3x2     66.67%       4  1 / 2.0 / 3  0.71-1.22     0
      4 of 6 weights active in sparse leaves (66.67%); 6 parameters in all.
      Masks take 6 bytes, the rest of the optimizer state (moments, counters) ...
      FLOPs in theory, of the dense network's: 66.67% for inference ...
      Sparsity is simulated on dense arrays: parameters, moments and ...
    """
    check_order("summary(params, opt_state)", params, opt_state)
    check_single(find_states(opt_state))
    check_concrete((params, opt_state), "summary", "use so.metrics under jit")
    has_compact_params = holds_compact(params)
    params = dense_arrays(params, params)
    masks = paths.leaves_by_path(get_masks(opt_state))
    leaves = {
        path: leaf
        for path, leaf in paths.flatten_with_paths(params)
        if hasattr(leaf, "shape")
    }
    check_fit(masks, leaves)
    flops.check_positions(positions, leaves)
    kinds = leaf_kinds(leaves, paths.modules_by_path(params))
    dense = _dense_paths(opt_state)
    layers = {
        path: _summarize(path, mask, leaves[path], dims, path in dense)
        for path, mask in masks.items()
    }
    sparse_flops = dense_flops = 0
    for path, leaf in leaves.items():
        if path in layers or flops.is_multiplied(
            leaf, resolve_axes(dims, path, leaf, is_sparse=False), kinds[path]
        ):
            count = flops.positions_of(path, positions)
            active = layers[path].active if path in layers else leaf.size
            sparse_flops += flops.forward_flops(active, count)
            dense_flops += flops.forward_flops(leaf.size, count)
    mask_bytes = sum(
        optimizer_bytes(
            (state.masks, state.topology_state.explored, state.topology_state.turned)
        )
        for state in find_states(opt_state)
    )
    return Summary(
        layers=tuple(layers.values()),
        parameters=sum(int(np.size(leaf)) for leaf in leaves.values()),
        mask_bytes=mask_bytes,
        state_bytes=optimizer_bytes(opt_state) - mask_bytes,
        forward_flops=(sparse_flops, dense_flops),
        positions=dict(positions or {}),
        compact=any(
            isinstance(state.masks, ActiveIndices) for state in find_states(opt_state)
        ),
        axes_warnings=_axes_warnings(dims, masks, opt_state),
        compact_params=has_compact_params,
    )


def _axes_warnings(
    dims: Dims, masks: Mapping[str, Any], opt_state: Any
) -> tuple[str, ...]:
    """Say where topologies counted fan-ins over axes other than ``dims``."""
    states = [state.topology_state for state in find_states(opt_state)]
    said = [
        counted_otherwise(path, resolve_axes(dims, path, mask), mask.shape, counts)
        for state in states
        for path, counts in paths.leaves_by_path(state.fan_ins).items()
        if (mask := masks.get(path)) is not None
    ]
    return tuple(filter(None, said))


def _dense_paths(opt_state: Any) -> frozenset[str]:
    """Return the sparse leaves whose weights are meant to stay dense."""
    states = [state for state in find_states(opt_state) if stays_dense(state)]
    return frozenset(
        path for s in states for path in paths.leaves_by_path(get_masks(s))
    )


def _summarize(
    path: str, mask: jax.Array, param: Any, dims: Dims, stays_dense: bool
) -> LayerSummary:
    axes = resolve_axes(dims, path, mask)
    leaks = 0 if stays_dense else int(count_true(~mask & (param != 0)))
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
            inactive_nonzero=leaks,
            stays_dense=stays_dense,
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
        inactive_nonzero=leaks,
        stays_dense=stays_dense,
    )


def _row(layer: LayerSummary) -> tuple[str, ...]:
    fan_in = factor = "-"
    if layer.fan_in is not None and layer.factor is not None:
        least, mean, largest = layer.fan_in
        fan_in = f"{least} / {mean:.1f} / {largest}"
        factor = f"{layer.factor[0]:.2f}-{layer.factor[1]:.2f}"
    density = tables.percent(layer.density)
    return (
        layer.path,
        tables.shape(layer.shape),
        density,
        f"{layer.active:,}",
        fan_in,
        factor,
        str(layer.dead),
    )
