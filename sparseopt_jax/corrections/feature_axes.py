"""The axes of arrays in a jaxpr that hold the features of a kernel or of a norm."""

import math
from typing import Any

from jax.extend import core

from sparseopt_jax.tracing.jaxprs import shape_of
from sparseopt_jax.tracing.primitives import ELEMENTWISE, KEEPS

_RESHAPES = frozenset({"expand_dims", "reshape", "squeeze"})


class FeatureAxes:
    """Axes by variable; those of other variables are unknown."""

    def __init__(self) -> None:
        self._known: dict[Any, frozenset[int]] = {}

    def of(self, var: Any) -> frozenset[int]:
        """Return the axes of a variable; empty if they are unknown.

        A vector has only one.
        """
        only = frozenset({0} if len(shape_of(var)) == 1 else ())
        return only if isinstance(var, core.Literal) else self._known.get(var, only)

    def set(self, var: Any, axes: frozenset[int]) -> None:
        """Set the axes of a variable."""
        self._known[var] = axes

    def hand_over(self, sources: Any, targets: Any) -> None:
        """Give variables the axes of others, as a call does."""
        for source, target in zip(sources, targets, strict=True):
            self.set(target, self.of(source))

    def follow(self, eqn: core.JaxprEqn) -> None:
        """Set the axes of an equation's results from those of its operands."""
        name, params = eqn.primitive.name, eqn.params
        if name in KEEPS and len(eqn.invars) == len(eqn.outvars):
            self.hand_over(eqn.invars, eqn.outvars)
            return
        if len(eqn.outvars) != 1:
            return
        (result,) = eqn.outvars
        axes = self.of(eqn.invars[0]) if eqn.invars else frozenset()
        if name == "transpose":
            found = frozenset(params["permutation"].index(axis) for axis in axes)
        elif name == "broadcast_in_dim":
            found = frozenset(params["broadcast_dimensions"][axis] for axis in axes)
        elif name in _RESHAPES:
            found = _reshaped(axes, shape_of(eqn.invars[0]), shape_of(result))
        elif name in ELEMENTWISE:
            rank = len(shape_of(result))
            whole = [var for var in eqn.invars if len(shape_of(var)) == rank]
            found = next((axes for var in whole if (axes := self.of(var))), frozenset())
        else:
            found = frozenset()
        self.set(result, found)

    def weigh(self, eqn: core.JaxprEqn, weight_is_right: bool) -> None:
        """Set the axes of a linear equation's result: the outputs of its kernel."""
        numbers = eqn.params["dimension_numbers"]
        (result,) = eqn.outvars
        if eqn.primitive.name == "conv_general_dilated":
            self.set(result, frozenset({numbers.out_spec[1]}))
            return
        contracted, batch = numbers
        free = [
            len(shape_of(var)) - len(contracted[side]) - len(batch[side])
            for side, var in enumerate(eqn.invars)
        ]
        begin = len(batch[0]) + free[0] * weight_is_right
        outputs = range(begin, begin + free[weight_is_right])
        self.set(result, frozenset({*range(len(batch[0])), *outputs}))


def _reshaped(
    axes: frozenset[int], old: tuple[int, ...], new: tuple[int, ...]
) -> frozenset[int]:
    """Return the axes after a reshape; empty if one of them is split or merged."""
    places = {
        (math.prod(new[:axis]), size): axis for axis, size in enumerate(new) if size > 1
    }
    found = [places.get((math.prod(old[:a]), old[a])) for a in axes if old[a] > 1]
    return frozenset() if None in found else frozenset(found)  # pyright: ignore
