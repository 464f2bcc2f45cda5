"""A reader that follows the neurons of every layer through the program of a model.

It tracks three properties of each value: which of its axes run along the neurons of
which layer, which of its entries are the same for every input, and where it comes from.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core

from sparseopt_jax.pruning.neurons import products
from sparseopt_jax.pruning.neurons.axes import axes_after
from sparseopt_jax.pruning.neurons.groups import Axes, NeuronGroups, opaque
from sparseopt_jax.pruning.neurons.known_entries import (
    UNKNOWN,
    Entries,
    evaluate,
    only_zeros,
)
from sparseopt_jax.pruning.neurons.products import Absorber, Operand, Product
from sparseopt_jax.tracing.jaxprs import called_jaxpr, interpret, open_jaxpr, shape_of
from sparseopt_jax.tracing.primitives import CALLS, KEEPS, MOVES, PRODUCTS

_SUMS = ("add", "add_any", "sub")


class Value(NamedTuple):
    """The known properties of a value of a program.

    Attributes:
      axes: the labels of its axes.
      entries: its known entries.
      origins: the last products that it is computed from, by number, and the model's
        inputs, by negative number; empty if it depends only on variables.
      leaves: the variables that it is computed from, except through products.
      leaf: the variable that it equals up to layout, sign and rounding to another
        floating-point type; -1 if none.
      is_negated: whether the sign differs.
      product: the product that it equals up to layout and the same rounding; -1 if
        none.
      terms: number of entries of activations that each of its entries sums; 1 unless
        their number may depend on the sizes of the model's inputs.
      is_one_position: whether it may be one position of a table, cut to the length of
        an example, so that entries that are known for it say nothing about others.
    """

    axes: Axes
    entries: Entries
    origins: frozenset[int] = frozenset()
    leaves: frozenset[int] = frozenset()
    leaf: int = -1
    is_negated: bool = False
    product: int = -1
    terms: int = 1
    is_one_position: bool = False


class NeuronReader:
    """A reader that follows neurons through a program.

    Attributes:
      groups: the axes of variables that run along the same neurons.
      axes: variable -> the labels of its axes.
      products: products of activations with weights, in the order of the program.
      uses: variable -> number of operations that use it directly.
    """

    def __init__(self):
        self.groups = NeuronGroups()
        self.axes: dict[int, Axes] = {}
        self.products: list[Product] = []
        self.uses: dict[int, int] = {}

    def read(
        self, jaxpr: core.ClosedJaxpr, variables: Sequence[Any], places: Sequence[int]
    ) -> None:
        """Follow the neurons through a program.

        Args:
          jaxpr: the program; its first inputs are the variables.
          variables: their values.
          places: the index of each variable in ``axes``, ``uses`` and products.
        """
        values = [self._variable(*pair) for pair in zip(places, variables, strict=True)]
        for index, var in enumerate(jaxpr.jaxpr.invars[len(values) :]):
            shape = shape_of(var)
            origin = frozenset([-1 - index])
            values.append(Value(opaque(shape), UNKNOWN, origin))
        for output in self._run(jaxpr.jaxpr, jaxpr.consts, values):
            for label in output.axes:
                self.groups.refuse(label, "outputs of the model")
            self._end(output, "is an output of the model")
            if output.leaf >= 0:
                self.uses[output.leaf] += 1

    def _variable(self, place: int, array: Any) -> Value:
        axes = tuple(map(self.groups.new, array.shape))
        self.axes[place] = axes
        self.uses[place] = 0
        leaves = frozenset([place])
        return Value(axes, Entries(array, True), leaves=leaves, leaf=place)

    def _run(
        self, jaxpr: core.Jaxpr, consts: Sequence[Any], values: Iterable[Value]
    ) -> list[Value]:
        def constant(x: Any) -> Value:
            return Value(opaque(getattr(x, "shape", ())), Entries(x, True))

        return interpret(
            jaxpr,
            values,
            self._equation,
            constants=map(constant, consts),
            literal=lambda literal: constant(literal.val),
        )

    def _equation(self, eqn: core.JaxprEqn, values: list[Value]) -> Iterable[Value]:
        name = eqn.primitive.name
        if name in CALLS and (body := called_jaxpr(eqn)) is not None:
            return self._run(open_jaxpr(body), getattr(body, "consts", ()), values)
        terms = _terms(eqn, values)
        if terms is None:
            values = [
                value._replace(entries=only_zeros(value.entries))
                if value.terms > 1
                else value
                for value in values
            ]
        if name in PRODUCTS:
            return [self._multiplied(eqn, values)]
        if name in _SUMS:
            self._joined(values)
        axes = axes_after(self.groups, eqn, [value.axes for value in values])
        entries = evaluate(eqn, [value.entries for value in values])
        origins = frozenset[int]().union(*(value.origins for value in values))
        leaves = frozenset[int]().union(*(value.leaves for value in values))
        results = [
            Value(
                axes=labels,
                entries=known,
                origins=origins,
                leaves=leaves,
                terms=terms or 1,
                is_one_position=_is_one_position(eqn, values),
            )
            for labels, known in zip(axes, entries, strict=True)
        ]
        is_kept = name in KEEPS | MOVES and not _changes_numbers(eqn)
        if is_kept and len(values) == len(results):
            return [
                result._replace(
                    leaf=value.leaf,
                    is_negated=value.is_negated,
                    product=value.product,
                )
                for result, value in zip(results, values, strict=True)
            ]
        if name == "neg" and values[0].leaf >= 0:
            turned = not values[0].is_negated
            return [results[0]._replace(leaf=values[0].leaf, is_negated=turned)]
        self._met(eqn, values)
        return results

    def _met(self, eqn: core.JaxprEqn, values: list[Value]) -> None:
        """Record how an equation uses variables and products."""
        name = eqn.primitive.name
        for value in values:
            if value.leaf >= 0:
                self.uses[value.leaf] += 1
        if name in _SUMS:
            first, second = values
            if name != "sub" and first.leaf >= 0:
                first, second = second, first
            if first.product >= 0 and second.leaf >= 0:
                is_added = (name == "sub") == second.is_negated
                absorber = Absorber(second.leaf, 1 if is_added else -1)
                self.products[first.product].absorbers.append(absorber)
                return
        for value in values:
            self._end(value, f"goes into {name}")

    def _joined(self, values: list[Value]) -> None:
        """Refuse neurons that several branches add to."""
        origins = {value.origins for value in values if value.origins}
        # The terms that an activation function adds have the same origin.
        for value in values if len(origins) > 1 else ():
            for label in value.axes:
                self.groups.refuse(label, "added to another branch (a residual stream)")

    def _end(self, value: Value, what: str) -> None:
        if value.product >= 0:
            self.products[value.product].ends = what

    def _multiplied(self, eqn: core.JaxprEqn, values: list[Value]) -> Value:
        for value in values:
            self._end(value, f"goes into {eqn.primitive.name}")
            if value.leaf >= 0:
                self.uses[value.leaf] += 1
        values = [
            value._replace(entries=UNKNOWN)
            if value.origins and value.is_one_position
            else value
            for value in values
        ]
        (entries,) = evaluate(eqn, [value.entries for value in values])
        fixed = [side for side, value in enumerate(values) if not value.origins]
        if len(fixed) != 1:
            reason = (
                "multiplied with other variables"
                if fixed
                else "multiplied with other activations, as in attention"
            )
            axes = products.between(
                self.groups, eqn, [value.axes for value in values], reason
            )
            origins = values[0].origins | values[1].origins
            leaves = values[0].leaves | values[1].leaves
            return Value(axes, entries, origins, leaves=leaves)
        operands = [
            Operand(v.axes, shape_of(atom), v.entries, v.leaves)
            for v, atom in zip(values, eqn.invars, strict=True)
        ]
        axes, product = products.product(self.groups, eqn, fixed[0], operands)
        if product is None:
            return Value(axes, entries, values[0].origins | values[1].origins)
        self.products.append(product)
        number = len(self.products) - 1
        return Value(axes, entries, frozenset([number]), product=number)


def _terms(eqn: core.JaxprEqn, values: Sequence[Value]) -> int | None:
    """Return how many terms the results sum.

    The sum of a constant over positions depends on their number, its mean does not: a
    division by the number of terms makes it 1 again.

    Returns:
      The number; None if other operations than a division take a sum.
    """
    name = eqn.primitive.name
    if name == "reduce_sum" and values[0].origins:
        shape = shape_of(eqn.invars[0])
        return values[0].terms * math.prod(shape[axis] for axis in eqn.params["axes"])
    if all(value.terms == 1 for value in values):
        return 1
    if len(values) == 1 and name in KEEPS | MOVES:
        return values[0].terms
    pairs = {"div": [values], "mul": [values, values[::-1]]}.get(name, [])
    for total, scale in pairs:
        factor = scale.entries.value
        if scale.entries.known is True and factor is not None and jnp.ndim(factor) == 0:
            number = float(factor)
            ratio = number * total.terms if name == "mul" else number / total.terms
            if math.isclose(ratio, 1.0, rel_tol=0.01):
                return 1
    return None


def _is_one_position(eqn: core.JaxprEqn, values: Sequence[Value]) -> bool:
    """Tell whether results may be one position of a table, as in ``Value``.

    A table cut to length 1 keeps that axis; a layer taken from a stack loses it.
    """
    name = eqn.primitive.name
    if name == "iota":
        return 1 in shape_of(eqn.outvars[0])
    if not any(value.origins for value in values):
        if name in ("squeeze", "reshape"):
            return False
        if name in ("slice", "dynamic_slice"):
            sizes = zip(shape_of(eqn.invars[0]), shape_of(eqn.outvars[0]), strict=True)
            if any(before > after == 1 for before, after in sizes):
                return True
    return any(value.is_one_position for value in values)


def _changes_numbers(eqn: core.JaxprEqn) -> bool:
    """Tell whether an equation converts to or from integers, bools or complex."""
    if eqn.primitive.name != "convert_element_type":
        return False
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype  # pyright: ignore
    is_float = (jnp.issubdtype(dtype, jnp.floating) for dtype in (before, after))
    return before != after and not all(is_float)
