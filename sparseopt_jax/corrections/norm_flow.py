"""A reader that follows the outputs of kernels through a traced model to their norms.

Names are not enough, because a pre-activation block calls its norms before its
convolutions. The output of every kernel is followed until a running mean is subtracted
from it, or until an operation makes the link wrong or unclear.
"""

import collections
import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from jax.extend import core

from sparseopt_jax.corrections.feature_axes import FeatureAxes
from sparseopt_jax.tracing.jaxprs import (
    called_jaxpr,
    interpret,
    loop_of,
    open_jaxpr,
    shape_of,
)
from sparseopt_jax.tracing.primitives import KEEPS, MOVES, PRODUCTS


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The known properties of a value that depends only on the variables.

    Attributes:
      size: how many numbers it holds, without the copies that broadcasting makes.
      kernels: the kernels that it is computed from.
      leaf: the leaf that it equals up to layout, dtype and sign; "" if none.
      negated: whether the sign differs.
    """

    size: int
    kernels: frozenset[str] = frozenset()
    leaf: str = ""
    negated: bool = False


# The known properties of a value that depends on the inputs: the kernels whose outputs
# it carries, each with the first obstacle that the output met, None if it met none.
Signal = dict[str, str | None]
Value = Fixed | Signal

NO_NORM = "no normalisation follows"
_JOINS = {"add": "added to", "sub": "added to", "concatenate": "concatenated with"}
# Operations that keep features apart.
_LAYOUT = MOVES | KEEPS


class NormFlow:
    """A reader that follows the outputs of kernels through a jaxpr.

    Attributes:
      norms: running mean -> path of its normalisation.
      uses: kernel -> how often it meets a signal, running mean -> how often it is
        subtracted from one.
      looped: leaves that a loop uses in every step.
      features: kernel -> the sizes that statistics of its output may have.
      reached: kernel -> the running means that are subtracted from its clean output.
      trouble: kernel -> the first reason on any path against a link.
      axes: the axes of features, where they are known.
    """

    def __init__(self, norms: Mapping[str, str]):
        self.norms = norms
        self.uses = collections.Counter[str]()
        self.looped: set[str] = set()
        self.features: dict[str, set[int]] = {}
        self.reached: dict[str, set[str]] = {}
        self.trouble: dict[str, str] = {}
        self.axes = FeatureAxes()

    def norm(self, kernel: str) -> str:
        """Return the norms of a kernel's clean output: only one if it is decided."""
        means = self.reached.get(kernel, ())
        return " and ".join(sorted(self.norms[mean] for mean in means))

    def undecided(self, kernel: str) -> str | None:
        """Return why a kernel has no link, None if it has one."""
        if kernel not in self.features:
            return self.trouble.get(kernel, "not used by apply_fn")
        if several := self._several_uses(kernel):
            return several
        trouble, means = self.trouble.get(kernel), self.reached.get(kernel)
        if not means:
            return trouble or "its output is not used"
        if trouble:
            norm = self.norm(kernel)
            return f"{norm} normalises it, but on another path: {trouble}"
        if len(means) > 1:
            return f"normalised by {self.norm(kernel)}"
        (several,) = map(self._several_uses, means)
        return several and f"{self.norm(kernel)} is {several}"

    def _several_uses(self, leaf: str) -> str | None:
        if leaf in self.looped:
            return "used in every step of a loop"
        return f"used {self.uses[leaf]} times" if self.uses[leaf] > 1 else None

    def run(self, jaxpr: core.Jaxpr, inputs: Iterable[Value]) -> list[Value]:
        """Return the known properties of a jaxpr's outputs."""
        return interpret(
            jaxpr,
            inputs,
            self._equation,
            constants=map(_of_size, jaxpr.constvars),
            literal=_of_size,
        )

    def end(self, value: Value, place: str, reason: str):
        """Record that the kernels in a value have no norm, and stop following them."""
        if isinstance(value, dict):
            for kernel, obstacle in value.items():
                trouble = f"{obstacle} before {place}" if obstacle else reason
                self.trouble.setdefault(kernel, trouble)

    def _equation(self, eqn: core.JaxprEqn, values: list[Value]) -> Iterable[Value]:
        name = eqn.primitive.name
        if name == "cond":
            branches = [open_jaxpr(branch) for branch in eqn.params["branches"]]
            outputs = [self.run(branch, values[1:]) for branch in branches]
            return map(_either, zip(*outputs, strict=True))
        if name in ("scan", "while"):
            return self._loop(eqn, values)
        if (called := called_jaxpr(eqn)) is not None:
            inner = open_jaxpr(called)
            self.axes.hand_over(eqn.invars, inner.invars)
            outputs = self.run(inner, values)
            self.axes.hand_over(inner.outvars, eqn.outvars)
            return outputs
        self.axes.follow(eqn)
        if name in _LAYOUT and len(values) == len(eqn.outvars):
            return values
        fixed = [value for value in values if isinstance(value, Fixed)]
        signals = [value for value in values if isinstance(value, dict)]
        if name == "neg":
            negated = [dataclasses.replace(f, negated=not f.negated) for f in fixed]
            return signals or negated
        if not signals:
            mean = self._mean(name, fixed)
            kernels = _kernels(fixed)
            return [Fixed(size_of(var), kernels, mean) for var in eqn.outvars]
        self.uses.update(_kernels(fixed))
        if len(signals) == len(fixed) == 1:
            output = self._meet(eqn, signals[0], fixed[0], values[1] is fixed[0])
        else:
            output = _merge(signals, f"passes through {name}", _JOINS.get(name))
        return [output] * len(eqn.outvars)

    def _mean(self, name: str, fixed: list[Fixed]) -> str:
        """Return the running mean that an equation scales, or slices a layer from."""
        large = [value for value in fixed if value.size > 1]
        is_mean = len(large) == 1 and large[0].leaf in self.norms
        scaled_or_cut = ("mul", "div", "slice", "dynamic_slice")
        return large[0].leaf if is_mean and name in scaled_or_cut else ""

    def _meet(
        self, eqn: core.JaxprEqn, signal: Signal, fixed: Fixed, fixed_is_right: bool
    ) -> Signal:
        """Return the result of an operation on a signal and a fixed value."""
        name = eqn.primitive.name
        if name in PRODUCTS and fixed.kernels:
            return self._weigh(eqn, signal, sorted(fixed.kernels), fixed_is_right)
        if name in ("add", "sub"):
            is_mean = fixed.leaf in self.norms and (name == "sub") != fixed.negated
            return self._normalise(eqn, signal, fixed) if is_mean else signal
        if name == "mul" or (name == "div" and fixed_is_right):
            if fixed.size == 1:
                return signal
            if fixed.leaf:
                return _merge([signal], f"scaled by {fixed.leaf}")
        return _merge([signal], f"passes through {name}")

    def _weigh(
        self, eqn: core.JaxprEqn, signal: Signal, kernels: list[str], is_right: bool
    ) -> Signal:
        """Multiply a signal with a weight made of kernels, whose outputs start here."""
        names = " and ".join(kernels)
        self.end(signal, f"it feeds {names}", f"feeds {names} without a normalisation")
        self.axes.weigh(eqn, is_right)
        self.features |= dict.fromkeys(kernels, _feature_sizes(eqn, is_right))
        shared = f"one of several kernels in a weight ({names})"
        return dict.fromkeys(kernels, shared if len(kernels) > 1 else None)

    def _normalise(self, eqn: core.JaxprEqn, signal: Signal, fixed: Fixed) -> Signal:
        """Subtract a running mean from a signal, and link its kernels to the norm."""
        mean = fixed.leaf
        self.uses[mean] += 1
        axes = [self.axes.of(var) for var in eqn.invars]
        is_aside = all(axes) and axes[0].isdisjoint(axes[1])
        for kernel, obstacle in signal.items():
            if obstacle is None and fixed.size not in self.features[kernel]:
                obstacle = f"regrouped into {fixed.size} features"
            norm = self.norms[mean]
            if obstacle is None and is_aside:
                self.end({kernel: None}, "", f"{norm} normalises another of its axes")
            elif obstacle is None:
                self.reached.setdefault(kernel, set()).add(mean)
            else:
                self.end({kernel: obstacle}, f"{norm} normalises it", "")
        return {}

    def _loop(self, eqn: core.JaxprEqn, values: list[Value]) -> Iterable[Value]:
        """Follow a scan or while loop, but nothing from one step to the next."""
        loop = loop_of(eqn)
        obstacle = f"passes through {eqn.primitive.name}"
        first_slice = loop.constants + loop.carried
        inputs = []
        operands = zip(
            values[loop.condition :], loop.body.invars, loop.shapes, strict=True
        )
        for index, (value, var, shape) in enumerate(operands):
            is_sliced = index >= first_slice
            if isinstance(value, dict):
                value = _merge([value], obstacle)
            elif is_sliced and value.size == math.prod(shape):
                value = self._slice(value, var)
            elif is_sliced or index < loop.constants:
                self.looped |= {*value.kernels, value.leaf}
            else:  # independent of the inputs only before the first step
                changed = "changed from step to step of a loop"
                self.trouble |= dict.fromkeys(value.kernels, changed)
                value = {}
            inputs.append(value)
        outputs = self.run(loop.body, inputs)
        next_step = "the next step of a loop"
        for value in outputs[: loop.carried]:
            self.end(value, next_step, f"carried to {next_step}")
        return [
            _merge([value], obstacle)
            if isinstance(value, dict)
            else Fixed(size_of(var), value.kernels)
            for value, var in zip(outputs, eqn.outvars, strict=True)
        ]

    def _slice(self, fixed: Fixed, var: Any) -> Fixed:
        """Return one layer of stacked leaves; a vector is not a kernel."""
        kernels = fixed.kernels
        if len(shape_of(var)) < 2:
            self.uses.update(dict.fromkeys(kernels, 0))
            kernels = frozenset[str]()
        return dataclasses.replace(fixed, size=size_of(var), kernels=kernels)


def _merge(signals: Iterable[Signal], obstacle: str, join: str | None = None) -> Signal:
    """Merge several signals, and add an obstacle to each kernel that has none.

    If ``join`` says how the signals are combined, the obstacle names the others.
    """
    merged: Signal = {}
    for signal in signals:
        for kernel, earlier in signal.items():
            merged[kernel] = merged.get(kernel) or earlier

    def met(kernel: str) -> str:
        if join is None:
            return obstacle
        others = [other for other in merged if other != kernel][:2]
        return f"{join} another branch" + f" ({', '.join(others)})" * bool(others)

    return {kernel: earlier or met(kernel) for kernel, earlier in merged.items()}


def _either(ways: tuple[Value, ...]) -> Value:
    """Return the known properties of a value that one of several branches returns."""
    signals = [way for way in ways if isinstance(way, dict)]
    if signals:
        return _merge(signals, "passes through cond")
    fixed = [way for way in ways if isinstance(way, Fixed)]
    return Fixed(max(way.size for way in fixed), _kernels(fixed))


def _feature_sizes(eqn: core.JaxprEqn, weight_is_right: bool) -> set[int]:
    """Return the sizes that the statistics of a linear equation's output may have.

    There is one number for each output feature. If features have several axes
    (`DenseGeneral`, layers under `vmap`), statistics may have only the last of them.
    """
    shape = shape_of(eqn.invars[weight_is_right])
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        return {shape[numbers[weight_is_right][0]]}
    contracted, batch = (axes[weight_is_right] for axes in numbers)
    free = [axis for axis in range(len(shape)) if axis not in (*contracted, *batch)]
    sizes = [shape[axis] for axis in (*batch, *free)]
    return set(itertools.accumulate(reversed(sizes), operator.mul))


def _kernels(fixed: Iterable[Fixed]) -> frozenset[str]:
    return frozenset[str]().union(*(value.kernels for value in fixed))


def size_of(atom: Any) -> int:
    """Return how many numbers a variable or literal of a jaxpr holds."""
    return math.prod(shape_of(atom))


def _of_size(atom: Any) -> Fixed:
    return Fixed(size_of(atom))
