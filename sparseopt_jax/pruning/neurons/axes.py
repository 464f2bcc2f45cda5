"""Rules for the axes that run along neurons, for every operation except products.

If an operation has no rule, the groups of its operands are refused.
"""

from collections.abc import Callable, Sequence
from typing import Any

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
    regrouped,
)
from sparseopt_jax.tracing.jaxprs import shape_of
from sparseopt_jax.tracing.primitives import (
    ELEMENTWISE,
    KEEPS,
    REDUCTIONS,
    WINDOW_REDUCTIONS,
)

_Rule = Callable[[NeuronGroups, core.JaxprEqn, Sequence[Axes]], Sequence[Axes]]


def axes_after(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    """Return the labels of an equation's results.

    Args:
      groups: the groups, joined where operands are aligned, refused where neurons mix.
      eqn: an equation that is neither a product nor a call.
      operands: the labels of its operands.

    Returns:
      The labels of each result.
    """
    name = eqn.primitive.name
    if name in KEEPS and len(operands) == len(eqn.outvars):
        return operands
    if name in ELEMENTWISE:
        return _entrywise(groups, eqn, operands)
    if name in REDUCTIONS:
        return _reduced(groups, eqn, operands)
    if name in WINDOW_REDUCTIONS:
        return _pooled(groups, eqn, operands)
    if name in ("reshape", "squeeze", "expand_dims"):
        return _reshaped(groups, eqn, operands)
    rule = _RULES.get(name, _unknown)
    return rule(groups, eqn, operands)


def _unknown(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    for axes in operands:
        for label in axes:
            groups.refuse(label, f"goes into {eqn.primitive.name}")
    return [opaque(shape_of(var)) for var in eqn.outvars]


def _entrywise(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    rank = max(map(len, operands))
    # Scalars are the same everywhere.
    full = [axes for axes in operands if len(axes) == rank]
    joined = tuple(met(groups, labels) for labels in zip(*full, strict=True))
    return [joined] * len(eqn.outvars)


def _reduced(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    (axes,) = operands
    for axis in eqn.params["axes"]:
        name = eqn.primitive.name
        groups.refuse(axes[axis], f"{name} runs over them (a norm, a softmax, a mean)")
    left = [a for i, a in enumerate(axes) if i not in eqn.params["axes"]]
    return [tuple(left)] * len(eqn.outvars)


def _pooled(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    params = eqn.params
    windows = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params["base_dilation"],
        strict=True,
    )
    is_whole = [tuple(window) == (1, 1, (0, 0), 1) for window in windows]
    return [
        _cut(groups, operands[0], is_whole, "pooled over", shape_of(eqn.outvars[0]))
    ]


def _reshaped(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    if eqn.primitive.name == "reshape" and eqn.params["dimensions"] is not None:
        return _unknown(groups, eqn, operands)
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    return [regrouped(groups, before, operands[0], after)]


def _broadcast(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    del groups
    axes: list[Label] = [UNIFORM] * len(eqn.params["shape"])
    for label, axis in zip(
        operands[0], eqn.params["broadcast_dimensions"], strict=True
    ):
        axes[axis] = label
    return [tuple(axes)]


def _transposed(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    del groups
    return [tuple(operands[0][axis] for axis in eqn.params["permutation"])]


def _sliced(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    before = shape_of(eqn.invars[0])
    results = []
    for var in eqn.outvars:
        after = shape_of(var)
        is_whole = [a == b for a, b in zip(before, after, strict=True)]
        results.append(_cut(groups, operands[0], is_whole, "cut into parts", after))
    return results


def _padded(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    is_whole = [tuple(pad) == (0, 0, 0) for pad in eqn.params["padding_config"]]
    return [_cut(groups, operands[0], is_whole, "padded", shape_of(eqn.outvars[0]))]


def _reversed(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    axes = operands[0]
    is_whole = [axis not in eqn.params["dimensions"] for axis in range(len(axes))]
    return [_cut(groups, axes, is_whole, "reversed", shape_of(eqn.outvars[0]))]


def _concatenated(
    groups: NeuronGroups, eqn: core.JaxprEqn, operands: Sequence[Axes]
) -> Sequence[Axes]:
    joined = eqn.params["dimension"]
    for axes in operands:
        groups.refuse(axes[joined], "concatenated with other features")
    columns = enumerate(zip(*operands, strict=True))
    return [tuple(OPAQUE if i == joined else met(groups, c) for i, c in columns)]


def _cut(
    groups: NeuronGroups,
    axes: Axes,
    is_whole: Sequence[bool],
    reason: str,
    shape: Sequence[int],
) -> Axes:
    """Return the labels; only whole axes keep theirs, all others are refused."""
    found = []
    for label, whole, unknown in zip(axes, is_whole, opaque(shape), strict=True):
        if not whole and isinstance(label, Along):
            groups.refuse(label, reason)
        found.append(label if whole else unknown)
    return tuple(found)


_RULES: dict[str, Any] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenated,
    "dynamic_slice": _sliced,
    "pad": _padded,
    "rev": _reversed,
    "slice": _sliced,
    "split": _sliced,
    "transpose": _transposed,
}
