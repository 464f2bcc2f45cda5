"""Products of activations and weights, which compute and read neurons."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from sparseopt_jax.pruning.neurons.groups import (
    OPAQUE,
    UNIFORM,
    Along,
    Axes,
    Label,
    NeuronGroups,
    met,
    opaque,
)
from sparseopt_jax.pruning.neurons.known_entries import Channels, Entries, channels
from sparseopt_jax.tracing.jaxprs import shape_of


class Absorber(NamedTuple):
    """A variable that is added to a product, or subtracted from it.

    Attributes:
      leaf: its index among the variables.
      sign: 1 if it is added, -1 if it is subtracted.
    """

    leaf: int
    sign: int


@dataclasses.dataclass
class Product:
    """A product of activations with weights.

    Attributes:
      leaves: the variables that the weights are computed from.
      weights: the weights.
      axes: the labels of their axes.
      kept: the axes of the weights that the product keeps.
      reads: the axis of the weights that reads the neurons of another layer; None if
        there is none, or more than one.
      inputs: the known activations along that axis; None if there is no such axis.
      is_padded: whether the activations are padded with zeros, or dilated.
      others: the labels of the activations' axes that the product keeps.
      places: how often each weight is used.
      absorbers: the variables added to the product before any other operation on it.
      ends: the other operation on it; empty if there is none.
    """

    leaves: frozenset[int]
    weights: Any
    axes: Axes
    kept: tuple[int, ...]
    reads: int | None
    inputs: Channels | None
    is_padded: bool
    others: Axes
    places: int
    absorbers: list[Absorber] = dataclasses.field(default_factory=list)
    ends: str = ""

    @property
    def neurons(self) -> list[Along]:
        """The labels along neurons among the axes that the weights contribute."""
        labels = [self.axes[axis] for axis in self.kept]
        return [label for label in labels if isinstance(label, Along)]


class Operand(NamedTuple):
    """An operand of a product.

    Attributes:
      axes: its labels.
      shape: its shape.
      entries: its known entries.
      leaves: the variables that it is computed from.
    """

    axes: Axes
    shape: tuple[int, ...]
    entries: Entries
    leaves: frozenset[int]


def between(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes], reason: str
) -> Axes:
    """Return the labels of a product of two activations or of two weights."""
    if eqn.primitive.name != "dot_general":
        _refuse(groups, operands, reason)
        return opaque(shape_of(eqn.outvars[0]))
    contracted, batch = eqn.params["dimension_numbers"]
    free = []
    for axes, summed, shared in zip(operands, contracted, batch, strict=True):
        for axis in (*summed, *shared):
            groups.refuse(axes[axis], reason)
        free += [a for i, a in enumerate(axes) if i not in (*summed, *shared)]
    shape = shape_of(eqn.outvars[0])
    first = len(batch[0])
    return (*opaque(shape[:first]), *free)


def product(
    groups: NeuronGroups, eqn: core.JaxprEqn, side: int, operands: Sequence[Operand]
) -> tuple[Axes, Product | None]:
    """Return a product of activations with weights.

    Args:
      groups: the groups, which are joined where the weights read neurons.
      eqn: a matrix product or a convolution.
      side: the index of the operand that holds the weights.
      operands: both operands.

    Returns:
      The labels of its result, and the product, or None if it cannot be followed.
    """
    if eqn.primitive.name == "dot_general":
        return _matrix_product(groups, eqn, side, operands)
    return _convolution(groups, eqn, side, operands)


def _matrix_product(
    groups: NeuronGroups, eqn: core.JaxprEqn, side: int, operands: Sequence[Operand]
) -> tuple[Axes, Product]:
    x, weights = operands[1 - side], operands[side]
    contracted, batch = eqn.params["dimension_numbers"]
    if batch[side]:
        _refuse(groups, (x.axes, weights.axes), "a stack of separate layers")
    shape = shape_of(eqn.outvars[0])
    kept = [
        [i for i in range(len(o.axes)) if i not in (*contracted[n], *batch[n])]
        for n, o in enumerate(operands)
    ]
    free = [operands[n].axes[axis] for n in (0, 1) for axis in kept[n]]
    others = tuple(x.axes[axis] for axis in kept[1 - side])
    pairs = list(zip(contracted[1 - side], contracted[side], strict=True))
    reads = _meet(groups, x, weights, pairs)
    made = Product(
        leaves=weights.leaves,
        weights=weights.entries.value,
        axes=weights.axes,
        kept=tuple(kept[side]),
        reads=None if reads is None else reads[1],
        inputs=None if reads is None else channels(x.entries, reads[0], x.shape),
        is_padded=False,
        others=others,
        places=math.prod(x.shape[axis] for axis in kept[1 - side]),
    )
    return (*opaque(shape[: len(batch[0])]), *free), made


def _convolution(
    groups: NeuronGroups, eqn: core.JaxprEqn, side: int, operands: Sequence[Operand]
) -> tuple[Axes, Product | None]:
    x, kernel = operands
    params, shape = eqn.params, shape_of(eqn.outvars[0])
    numbers = params["dimension_numbers"]
    is_grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    if is_grouped or side == 0:
        reason = "a grouped convolution" if is_grouped else "filters other variables"
        _refuse(groups, (x.axes, kernel.axes), reason)
        return opaque(shape), None
    for operand, spec in ((x, numbers.lhs_spec), (kernel, numbers.rhs_spec)):
        for axis in spec[2:]:
            groups.refuse(operand.axes[axis], "the window of a convolution")
    output, summed, *_ = numbers.rhs_spec
    reads = _meet(groups, x, kernel, [(numbers.lhs_spec[1], summed)])
    axes: list[Label] = list(opaque(shape))
    axes[numbers.out_spec[0]] = x.axes[numbers.lhs_spec[0]]
    axes[numbers.out_spec[1]] = kernel.axes[output]
    made = Product(
        leaves=kernel.leaves,
        weights=kernel.entries.value,
        axes=kernel.axes,
        kept=(output,),
        reads=None if reads is None else reads[1],
        inputs=None if reads is None else channels(x.entries, reads[0], x.shape),
        is_padded=any(low or high for low, high in params["padding"])
        or any(step != 1 for step in params["lhs_dilation"]),
        others=(x.axes[numbers.lhs_spec[0]],),
        places=math.prod(shape) // kernel.shape[output],
    )
    return tuple(axes), made


def _meet(
    groups: NeuronGroups,
    x: Operand,
    weights: Operand,
    pairs: Sequence[tuple[int, int]],
) -> tuple[int, int] | None:
    """Join the axes that are summed over; return the pair that runs along neurons."""
    along = []
    for pair in pairs:
        label = x.axes[pair[0]], weights.axes[pair[1]]
        met(groups, label)
        if isinstance(label[0], Along):
            if label[1] is UNIFORM:
                groups.refuse(label[0], "summed over by weights that are all the same")
            elif label[1] is not OPAQUE:
                along.append(pair)
    if len(along) == 1:
        return along[0]
    for pair in along:
        groups.refuse(x.axes[pair[0]], "summed over together with other axes")
    return None


def _refuse(groups: NeuronGroups, operands: Sequence[Axes], reason: str) -> None:
    for axes in operands:
        for label in axes:
            groups.refuse(label, reason)
