"""The table to read before training: what a topology makes sparse, and why not."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.layers.axis_guesses import REMEDY, Guess, by_reason, guesses
from sparseopt_jax.layers.leaf_kinds import BIAS, SCALE
from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims, chosen_dims, resolve_axes, same_axes
from sparseopt_jax.layers.structures import Unstructured
from sparseopt_jax.masks.compact_kernel import dense_shapes
from sparseopt_jax.masks.packing import packed_bytes
from sparseopt_jax.reports import flops, tables
from sparseopt_jax.reports.plan_products import planned_products
from sparseopt_jax.topologies.base import Topology

_COLUMNS = (
    "layer",
    "shape",
    "inputs",
    "outputs",
    "structure",
    "density",
    "active",
    "compact products",
    "why dense",
)

_COMPACT_PRODUCTS = (
    "Not so with so.compact_params and so.sparse_apply: parameters, gradients and "
    "moments of compact kernels are their active blocks alone, and their products run "
    "as the table says."
)


@dataclasses.dataclass(frozen=True, repr=False)
class Plan(tables.Printed):
    """A topology's plan for each leaf; prints as a table.

    Attributes:
      leaves: one ``LeafPlan`` per leaf, in tree order.
      positions: the given numbers of output positions, by globs over paths.
      dense_gradients: the fraction of steps that need the dense gradient while the
        topology changes.
      guesses: sparse leaves whose neuron axes are a guess, and what contradicts it.
      disagreements: a sentence per leaf whose axes differ from the model's.
      updates: how often the masks are updated, as a sentence; empty if never.
      products: by path, how the products of kernels that ``compact_params`` can make
        compact will run: by block, or dense and why.
    """

    leaves: tuple[LeafPlan, ...]
    positions: Mapping[str, int]
    dense_gradients: float
    guesses: Mapping[str, Guess] = dataclasses.field(default_factory=dict)
    disagreements: tuple[str, ...] = ()
    updates: str = ""
    products: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def active(self) -> int:
        """Count active weights over all sparse leaves."""
        return sum(leaf.active or 0 for leaf in self.leaves)

    @property
    def size(self) -> int:
        """Count weights in all sparse leaves, active or not."""
        return sum(_size(leaf) for leaf in self.leaves if leaf.layer)

    @property
    def parameters(self) -> int:
        """Count parameters in all leaves."""
        return sum(map(_size, self.leaves))

    @property
    def mask_bytes(self) -> int:
        """Count the bytes of the masks, one per weight."""
        return self.size

    @property
    def packed_mask_bytes(self) -> int:
        """Count the bytes of the masks with ``sparsify(..., packed=True)``."""
        shapes = [leaf.leaf.shape for leaf in self.leaves if leaf.layer]
        return sum(map(packed_bytes, shapes))

    @property
    def forward_flops(self) -> tuple[float, float]:
        """Count the FLOPs of the sparse and the dense forward pass, per example.

        The first is NaN if the masks do not reveal the number of active weights.
        """
        sparse, dense = 0.0, 0
        for leaf in self.leaves:
            if leaf.layer or flops.is_multiplied(leaf.leaf, leaf.axes, leaf.kind):
                positions = flops.positions_of(leaf.path, self.positions)
                dense += flops.forward_flops(_size(leaf), positions)
                active = leaf.active if leaf.layer else _size(leaf)
                sparse += (
                    math.nan
                    if active is None
                    else flops.forward_flops(active, positions)
                )
        return sparse, dense

    @property
    def inference_flops(self) -> float:
        """Return the theoretical FLOPs of a forward pass relative to the dense one."""
        return flops.inference_flops(*self.forward_flops)

    @property
    def training_flops(self) -> float:
        """Return the theoretical FLOPs of a training step relative to the dense one."""
        return flops.training_flops(
            *self.forward_flops, dense_gradients=self.dense_gradients
        )

    def page(self) -> tables.Page:
        """Return the table, and the notes below it."""
        share = tables.percent(self.active / self.size if self.size else math.nan)
        training = f"{tables.percent(self.training_flops)} for training" + (
            f" with dense gradients in {tables.percent(self.dense_gradients)} of steps"
            if self.dense_gradients
            else ""
        )
        doubted = self.guesses
        refuted = {p: guess for p, guess in doubted.items() if guess.is_refuted}
        uncertain = {p: guess for p, guess in doubted.items() if not guess.is_refuted}
        return tables.Page(
            head=_COLUMNS,
            rows=tuple(
                _plan_row(leaf, leaf.path in doubted, self.products.get(leaf.path, ""))
                for leaf in self.leaves
            ),
            styles=tuple("" if leaf.layer else "dim" for leaf in self.leaves),
            notes=(
                f"{self.active:,} of {self.size:,} weights active in sparse leaves "
                f"({share}); {self.parameters - self.size:,} parameters dense, "
                f"{self.parameters:,} in all.",
                *_notes_on_kinds(self.leaves),
                f"Masks take {tables.memory(self.mask_bytes)}, packed "
                f"{tables.memory(self.packed_mask_bytes)}.",
                *filter(None, [self.updates]),
                flops.note(self.inference_flops, training, self.positions),
                tables.SIMULATED,
                *([_COMPACT_PRODUCTS] if self.products else []),
                *_notes_on_axes(uncertain),
            ),
            warnings=(*_warnings_of_axes(refuted), *self.disagreements),
        )


def plan(
    params: Any,
    topology: Topology,
    *,
    positions: Mapping[str, int] | None = None,
    dims: Dims = None,
    apply_fn: Callable[[Any], Any] | None = None,
) -> Plan:
    """Show what a topology will make sparse, how much, and why the rest stays dense.

    For each sparse kernel, the table shows the sizes of the axes that a neuron sums
    over (``inputs``) and of those that neurons lie along (``outputs``). ``12 x`` is a
    stack of 12 separate layers, and ``?`` marks axes that are a guess.

    Args:
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``, dense or compact.
      topology: from ``static``, ``set_``, ``rigl`` or any other method. If its density
        moves, the plan shows the end.
      positions: for FLOPs, how often an example uses each weight of a leaf: a mapping
        from globs over paths (the first match decides) to the number of output
        positions, such as ``{"Conv_0/*": 28 * 28}``, which the shapes of weights do not
        determine. The default of 1 is exact for dense layers, but not for networks that
        combine them with convolutions or with different numbers of tokens.
      dims: what ``infer_dims`` found in the model; the plan warns where the topology's
        axes differ.
      apply_fn: evaluates the model on these parameters, such as ``lambda params:
        model.apply({"params": params}, x)``; it is only traced. With it, the plan says
        for each kernel of blocks whether its products pay by block for that many
        samples, or why ``sparse_apply`` refuses them; without it, it assumes many
        samples.

    Returns:
      A ``Plan``: print it before training, with ``rich.print`` for colours. FLOPs are
      those while the topology changes.

    Raises:
      TypeError: if ``topology`` is not a topology, or ``positions`` not a mapping.
      ValueError: if the topology does not fit the parameters; if ``positions`` matches
        no leaf, or contains anything but positive integers.

    References:
      Evci et al., RigL, 2020 (arXiv 1911.11134): how FLOPs are counted.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> kernel = jax.ShapeDtypeStruct((4, 8), jnp.float32)
      >>> bias = jax.ShapeDtypeStruct((8,), jnp.float32)
      >>> plan = so.plan({"kernel": kernel, "bias": bias}, so.static(0.75))
      >>> print(plan)
      layer   shape  inputs  outputs  density  active  why dense
      bias    8                             -       -  fewer than two dimensions
      kernel  4x8         4        8   25.00%       8
      8 of 32 weights active in sparse leaves (25.00%); 8 parameters dense, 40 in all.
      Masks take 32 bytes, packed 12 bytes.
      FLOPs in theory, of the dense network's: 25.00% for inference, 25.00% for ...
      Sparsity is simulated on dense arrays: parameters, moments and ...
      >>> plan.training_flops
      0.25
    """
    if not isinstance(topology, Topology):
        swapped = isinstance(params, Topology)
        raise TypeError(
            "params and topology are swapped: call so.plan(params, topology)"
            if swapped
            else "topology must be a Topology, as so.static(0.9) makes it, got "
            f"{described(topology)}: call so.plan(params, topology)"
        )
    leaves = tuple(topology.leaves(dense_shapes(params)))
    by_path = {leaf.path: leaf.leaf for leaf in leaves}
    given = (
        set() if dims is None else {p for p in by_path if _says(dims, p, by_path[p])}
    )
    sparse = [leaf for leaf in leaves if leaf.layer]
    not_given = [leaf.path for leaf in sparse if leaf.path not in given]
    flops.check_positions(positions, [leaf.path for leaf in leaves])
    return Plan(
        leaves=leaves,
        positions=dict(positions or {}),
        dense_gradients=topology.dense_gradients,
        guesses=guesses(topology.dims, not_given, by_path),
        disagreements=() if dims is None else _disagreements(dims, sparse),
        updates=topology.updates,
        products=planned_products(leaves, params, apply_fn),
    )


def _size(leaf: LeafPlan) -> int:
    return math.prod(leaf.leaf.shape)


def _plan_row(leaf: LeafPlan, is_guess: bool, product: str) -> tuple[str, ...]:
    shape = tables.shape(leaf.leaf.shape)
    if leaf.layer is None:
        return leaf.path, shape, "", "", "", "-", "-", "", leaf.why_dense
    structure = "" if leaf.structure == Unstructured() else repr(leaf.structure)
    named = leaf.path, shape, *_axes(leaf, is_guess), structure
    if leaf.active is None:
        return *named, "-", "-", product, leaf.note
    density = tables.percent(leaf.active / _size(leaf))
    return *named, density, f"{leaf.active:,}", product, leaf.note


def _axes(leaf: LeafPlan, is_guess: bool) -> tuple[str, str]:
    """Return the sizes of inputs, after those of a stack, and of outputs, as text."""
    if leaf.axes is None:
        return "", ""
    batch, inputs, outputs = (
        tables.shape(tuple(leaf.leaf.shape[axis] for axis in group)) if group else ""
        for group in leaf.axes
    )
    stack = f"{batch} x " if batch else ""
    return f"{stack}{inputs}", f"{outputs}?" if is_guess else outputs


def _notes_on_kinds(leaves: Sequence[LeafPlan]) -> list[str]:
    """Say how to make leaves sparse that their kind keeps dense, biases excepted."""
    found = [
        leaf.path
        for leaf in leaves
        if leaf.kind not in ("", BIAS, SCALE) and leaf.why_dense == leaf.kind
    ]
    return [
        f"include={x!r}, or a glob, makes sparse what is not a kernel."
        for x in found[:1]
    ]


def _notes_on_axes(uncertain: Mapping[str, Guess]) -> list[str]:
    if not uncertain:
        return []
    return [
        f"? marks axes that are a guess: {REMEDY}, which reads them off the model.",
        *(f"? {line}." for line in by_reason(uncertain)),
    ]


def _warnings_of_axes(refuted: Mapping[str, Guess]) -> list[str]:
    return [f"{line}; {REMEDY}." for line in by_reason(refuted)]


def _says(dims: Dims, path: str, leaf: Any) -> bool:
    return chosen_dims(dims, path, leaf)[0] is not None


def _disagreements(dims: Dims, sparse: list[LeafPlan]) -> tuple[str, ...]:
    found = []
    for leaf in sparse:
        if not _says(dims, leaf.path, leaf.leaf):
            continue
        axes = resolve_axes(dims, leaf.path, leaf.leaf)
        if axes is not None and not same_axes(axes, leaf.axes, leaf.leaf.shape):
            found.append(
                f"{leaf.path}: the model sums over axes {axes.reduction} and has its "
                f"neurons along {axes.output}, the topology takes "
                f"{leaf.axes and leaf.axes.reduction} and "
                f"{leaf.axes and leaf.axes.output}: give it these dims."
            )
    return tuple(found)
