"""Which normalisation follows which kernel, read off the traced evaluation of a model.

Names cannot tell: a pre-activation block calls its norms before its convolutions. The
computation can. In evaluation a batch normalisation subtracts a running mean, which is
a leaf of the model's variables. So the model is traced, without computing anything,
and every kernel's output is followed until a running mean is subtracted from it, or
until something happens that makes the link wrong or unclear.
"""

import collections
import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparseopt_jax.tracing.jaxprs import called_jaxpr, open_jaxpr, ranks, shape_of
from sparseopt_jax.tracing.running_statistics import find_statistics
from sparseopt_jax.trees import paths


class NormLinks(dict[str, str]):
    """Kernel path -> path of the normalisation that its output goes into.

    Attributes:
      undecided: kernel path -> why it has no link.
    """

    def __init__(self, links: Mapping[str, str], undecided: Mapping[str, str]):
        super().__init__(links)
        self.undecided = dict(undecided)

    def __repr__(self) -> str:
        return f"NormLinks({super().__repr__()}, undecided={self.undecided!r})"


def infer_norm_links(
    apply_fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> NormLinks:
    """Finds the batch normalisation that follows each kernel by tracing the model.

    A kernel is a leaf with two or more axes that is an operand of a matrix product or
    a convolution. It is linked to a normalisation if its output goes there and nowhere
    else, and if on the way it only meets a bias, a scalar factor, a change of layout
    or of dtype. All others are reported by name in ``undecided``: an activation,
    pooling or a skip connection comes before the norm, no norm comes at all, the
    kernel or the norm is used several times.

    Args:
      apply_fn: ``apply_fn(variables, *args, **kwargs)`` evaluates the model with its
        running statistics, as ``model.apply`` with ``train=False`` does in linen and
        ``lambda state, x: nnx.merge(graphdef, state)(x)`` in nnx. For Haiku and
        Equinox hand the parameters and the state over in one dictionary, as
        ``lambda v, x: model.apply(v["params"], v["state"], None, x)``.
      variables: all variables, as arrays or ``jax.ShapeDtypeStruct``. A running mean
        is a leaf ``.../mean`` that has a sibling ``.../var``, as in Flax, Haiku's
        ``.../mean_ema/average`` beside ``.../var_ema/average``, or the first of a pair
        of vectors in an Equinox ``State``. If there is a collection ``"params"`` at the
        top, reported paths leave out the collection's name.
      *args: the model's inputs, as arrays or ``jax.ShapeDtypeStruct``. What is not an
        array is passed on as it is.
      **kwargs: treated as ``args`` are.

    Returns:
      The links and, as their attribute ``undecided``, the reasons for the kernels that
      have none. Both are in the order of ``variables``.

    Raises:
      ValueError: if ``variables`` hold no arrays or no running mean, or if
        ``apply_fn`` never subtracts one.

    Examples:
      >>> import flax.linen as nn
      >>> import jax, jax.numpy as jnp
      >>> from sparseopt_jax.corrections.norm_links import infer_norm_links
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> model = nn.Sequential([nn.Dense(8), norm, nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((4, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> links = infer_norm_links(model.apply, variables, x)
      >>> dict(links)
      {'layers_0/kernel': 'layers_1'}
      >>> links.undecided
      {'layers_3/kernel': 'no normalisation follows'}
    """
    leaves = list(paths.leaves_by_path(variables))
    if not leaves:
        raise ValueError(
            f"variables must hold the model's arrays, got {variables!r}: pass what "
            "model.init or nnx.state(model) returns"
        )
    found = find_statistics(variables)
    if not found:
        raise ValueError(
            "no running mean found: pass the variables of a model with BatchNorm, "
            "its statistics (batch_stats, Haiku's or Equinox's state) included, and "
            "evaluate with train=False; the paths are " + ", ".join(leaves)
        )
    jaxpr = _trace(apply_fn, variables, args, kwargs)
    norm_of = {own.mean: own.norm for own in found}
    statistics = {*norm_of, *(own.variance for own in found)}

    has_collections = isinstance(variables, Mapping) and "params" in variables
    candidates, norms, inputs = [], {}, []
    for path, var in zip(leaves, jaxpr.invars, strict=False):
        aval: Any = var.aval
        name = path.partition("/")[2] if has_collections else path
        kernels = frozenset[str]()
        if path in statistics:
            if path in norm_of:
                norm = norm_of[path]
                norms[name] = norm.partition("/")[2] if has_collections else norm
        elif (
            len(aval.shape) >= 2
            and jnp.issubdtype(aval.dtype, jnp.inexact)
            and (path.startswith("params/") or not has_collections)
        ):
            candidates.append(name)
            kernels = frozenset([name])
        inputs.append(_Fixed(_size(var), kernels, leaf=name))
    inputs += [{} for _ in jaxpr.invars[len(leaves) :]]

    flow = _Flow(norms)
    for value in flow.run(jaxpr, inputs):
        flow.end(value, f"the output; {_NO_NORM}", _NO_NORM)
    if not any(mean in flow.uses for mean in norms):
        raise ValueError(
            "running statistics are never subtracted: call the model in evaluation "
            "mode (train=False / model.eval()) and give infer_norm_links its inputs "
            "as arguments"
        )
    # A leaf with two or more axes that is used, but not as a kernel (an embedding that
    # is looked up, the biases of stacked layers), is left out.
    reasons = {
        name: flow.undecided(name)
        for name in candidates
        if name in flow.features or name not in flow.uses
    }
    return NormLinks(
        {name: flow.norm(name) for name, reason in reasons.items() if reason is None},
        {name: reason for name, reason in reasons.items() if reason is not None},
    )


def _trace(
    apply_fn: Callable[..., Any], variables: Any, args: Any, kwargs: Any
) -> core.Jaxpr:
    """The jaxpr of a call; its inputs are the variables, then the arrays given."""
    given = (args, kwargs)
    array_types = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    arrays = jax.tree.map(lambda x: x if isinstance(x, array_types) else None, given)

    def evaluate(variables: Any, arrays: Any) -> Any:
        args, kwargs = jax.tree.map(
            lambda array, x: x if array is None else array,
            arrays,
            given,
            is_leaf=lambda x: x is None,
        )
        return apply_fn(variables, *args, **kwargs)

    return open_jaxpr(jax.make_jaxpr(evaluate)(variables, arrays))


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What is known of a value that depends on the variables alone.

    Attributes:
      size: how many numbers it holds, copies made by broadcasting not counted.
      kernels: the kernels that it is computed from.
      leaf: the leaf that it is, but for layout, dtype and sign; "" if it is none.
      negated: whether the sign differs.
    """

    size: int
    kernels: frozenset[str] = frozenset()
    leaf: str = ""
    negated: bool = False


# What is known of a value that depends on the inputs: the kernels whose outputs it
# carries, each with the first obstacle that the output met since, None if it met none.
_Signal = dict[str, str | None]
_Value = _Fixed | _Signal

_NO_NORM = "no normalisation follows"
_JOINS = {"add": "added to", "sub": "added to", "concatenate": "concatenated with"}
# What keeps features apart: moving numbers, converting them, marking them.
_MOVES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims"}
_CONVERSIONS = {"convert_element_type", "reduce_precision", "copy", "copy_p"}
_MARKS = {"name", "stop_gradient", "optimization_barrier", "pvary", "mesh_cast"}
_PLACEMENTS = {"device_put", "sharding_constraint", "reshard"}
_LAYOUT = _MOVES | _CONVERSIONS | _MARKS | _PLACEMENTS


class _Flow:
    """Follows the outputs of kernels through a jaxpr.

    Attributes:
      norms: running mean -> path of its normalisation.
      uses: kernel -> how often it meets a signal, running mean -> how often it is
        subtracted from one.
      looped: leaves that a loop uses in every step.
      features: kernel -> the sizes that statistics of its output may have.
      reached: kernel -> the running means that are subtracted from its clean output.
      trouble: kernel -> the first thing on any path that speaks against a link.
    """

    def __init__(self, norms: Mapping[str, str]):
        self.norms = norms
        self.uses = collections.Counter[str]()
        self.looped: set[str] = set()
        self.features: dict[str, set[int]] = {}
        self.reached: dict[str, set[str]] = {}
        self.trouble: dict[str, str] = {}

    def norm(self, kernel: str) -> str:
        """What normalises a kernel's clean output: one norm if it is decided."""
        means = self.reached.get(kernel, ())
        return " and ".join(sorted(self.norms[mean] for mean in means))

    def undecided(self, kernel: str) -> str | None:
        """Why a kernel has no link, None if it has one."""
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

    def run(self, jaxpr: core.Jaxpr, inputs: Iterable[_Value]) -> list[_Value]:
        """What is known of a jaxpr's outputs."""
        known: dict[Any, _Value] = {v: _Fixed(_size(v)) for v in jaxpr.constvars}
        known.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> _Value:
            is_literal = isinstance(atom, core.Literal)
            return _Fixed(_size(atom)) if is_literal else known[atom]

        for eqn in jaxpr.eqns:
            outputs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            known.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def end(self, value: _Value, place: str, reason: str):
        """What a value carries stays un-normalised and is followed no further."""
        if isinstance(value, dict):
            for kernel, obstacle in value.items():
                trouble = f"{obstacle} before {place}" if obstacle else reason
                self.trouble.setdefault(kernel, trouble)

    def _equation(self, eqn: core.JaxprEqn, values: list[_Value]) -> Iterable[_Value]:
        name = eqn.primitive.name
        if name == "cond":
            branches = [open_jaxpr(branch) for branch in eqn.params["branches"]]
            outputs = [self.run(branch, values[1:]) for branch in branches]
            return map(_either, zip(*outputs, strict=True))
        if name in ("scan", "while"):
            return self._loop(eqn, values)
        if (called := called_jaxpr(eqn)) is not None:
            return self.run(open_jaxpr(called), values)
        if name in _LAYOUT and len(values) == len(eqn.outvars):
            return values
        fixed = [value for value in values if isinstance(value, _Fixed)]
        signals = [value for value in values if isinstance(value, dict)]
        if name == "neg":
            negated = [dataclasses.replace(f, negated=not f.negated) for f in fixed]
            return signals or negated
        if not signals:
            mean = self._mean(name, fixed)
            kernels = _kernels(fixed)
            return [_Fixed(_size(var), kernels, mean) for var in eqn.outvars]
        self.uses.update(_kernels(fixed))
        if len(signals) == len(fixed) == 1:
            output = self._meet(eqn, signals[0], fixed[0], values[1] is fixed[0])
        else:
            output = _merge(signals, f"passes through {name}", _JOINS.get(name))
        return [output] * len(eqn.outvars)

    def _mean(self, name: str, fixed: list[_Fixed]) -> str:
        """The running mean that a scalar corrects or that one layer's is cut from."""
        large = [own for own in fixed if own.size > 1]
        is_mean = len(large) == 1 and large[0].leaf in self.norms
        scaled_or_cut = ("mul", "div", "slice", "dynamic_slice")
        return large[0].leaf if is_mean and name in scaled_or_cut else ""

    def _meet(
        self, eqn: core.JaxprEqn, signal: _Signal, fixed: _Fixed, fixed_is_right: bool
    ) -> _Signal:
        """What comes of a signal and a fixed value in an operation of two operands."""
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated") and fixed.kernels:
            return self._weigh(eqn, signal, sorted(fixed.kernels), fixed_is_right)
        if name in ("add", "sub"):
            is_mean = fixed.leaf in self.norms and (name == "sub") != fixed.negated
            return self._normalise(signal, fixed) if is_mean else signal
        if name == "mul" or (name == "div" and fixed_is_right):
            if fixed.size == 1:
                return signal
            if fixed.leaf:
                return _merge([signal], f"scaled by {fixed.leaf}")
        return _merge([signal], f"passes through {name}")

    def _weigh(
        self, eqn: core.JaxprEqn, signal: _Signal, kernels: list[str], is_right: bool
    ) -> _Signal:
        """A signal meets a weight made of kernels, whose outputs start here."""
        names = " and ".join(kernels)
        self.end(signal, f"it feeds {names}", f"feeds {names} without a normalisation")
        self.features |= dict.fromkeys(kernels, _feature_sizes(eqn, is_right))
        shared = f"one of several kernels in a weight ({names})"
        return dict.fromkeys(kernels, shared if len(kernels) > 1 else None)

    def _normalise(self, signal: _Signal, fixed: _Fixed) -> _Signal:
        """A running mean is subtracted from a signal."""
        mean = fixed.leaf
        self.uses[mean] += 1
        for kernel, obstacle in signal.items():
            if obstacle is None and fixed.size not in self.features[kernel]:
                obstacle = f"regrouped into {fixed.size} features"
            if obstacle is None:
                self.reached.setdefault(kernel, set()).add(mean)
            else:
                self.end({kernel: obstacle}, f"{self.norms[mean]} normalises it", "")
        return {}

    def _loop(self, eqn: core.JaxprEqn, values: list[_Value]) -> Iterable[_Value]:
        """A scan or while loop. Nothing is followed from one step to the next."""
        body = open_jaxpr(eqn.params.get("body_jaxpr") or eqn.params["jaxpr"])
        obstacle = f"passes through {eqn.primitive.name}"
        # The body's inputs are constants, carry and slices, its outputs carry and
        # slices. A slice has one axis less than what it is cut from. The constants of
        # a while loop's condition come before all these.
        outer = eqn.invars[-len(body.invars) :]
        values = values[-len(body.invars) :]
        sliced = [*map(operator.lt, ranks(body.invars), ranks(outer))]
        carried = sum(map(operator.eq, ranks(body.outvars), ranks(eqn.outvars)))
        first_carry = sliced.count(False) - carried
        inputs = []
        for index, (value, var) in enumerate(zip(values, body.invars, strict=True)):
            if isinstance(value, dict):
                value = _merge([value], obstacle)
            elif sliced[index] and value.size == _size(outer[index]):
                value = self._slice(value, var)
            elif sliced[index] or index < first_carry:
                self.looped |= {*value.kernels, value.leaf}
            else:  # fixed before the first step, not after it
                changed = "changed from step to step of a loop"
                self.trouble |= dict.fromkeys(value.kernels, changed)
                value = {}
            inputs.append(value)
        outputs = self.run(body, inputs)
        next_step = "the next step of a loop"
        for value in outputs[:carried]:
            self.end(value, next_step, f"carried to {next_step}")
        return [
            _merge([value], obstacle)
            if isinstance(value, dict)
            else _Fixed(_size(var), value.kernels)
            for value, var in zip(outputs, eqn.outvars, strict=True)
        ]

    def _slice(self, fixed: _Fixed, var: Any) -> _Fixed:
        """One layer of stacked leaves; of stacked vectors it is no kernel."""
        kernels = fixed.kernels
        if len(shape_of(var)) < 2:
            self.uses.update(dict.fromkeys(kernels, 0))
            kernels = frozenset[str]()
        return dataclasses.replace(fixed, size=_size(var), kernels=kernels)


def _merge(
    signals: Iterable[_Signal], obstacle: str, join: str | None = None
) -> _Signal:
    """One signal from several, with an obstacle for what met none before.

    If ``join`` says how several signals come together, the obstacle is the others.
    """
    merged: _Signal = {}
    for signal in signals:
        for kernel, earlier in signal.items():
            merged[kernel] = merged.get(kernel) or earlier

    def met(kernel: str) -> str:
        if join is None:
            return obstacle
        others = [other for other in merged if other != kernel][:2]
        return f"{join} another branch" + f" ({', '.join(others)})" * bool(others)

    return {kernel: earlier or met(kernel) for kernel, earlier in merged.items()}


def _either(ways: tuple[_Value, ...]) -> _Value:
    """What is known of a value that one of several branches gives."""
    signals = [way for way in ways if isinstance(way, dict)]
    if signals:
        return _merge(signals, "passes through cond")
    fixed = [way for way in ways if isinstance(way, _Fixed)]
    return _Fixed(max(way.size for way in fixed), _kernels(fixed))


def _feature_sizes(eqn: core.JaxprEqn, weight_is_right: bool) -> set[int]:
    """The sizes that the statistics of a linear equation's output may have.

    There is one number for each output feature, or, where features have several axes
    (`DenseGeneral`, layers under `vmap`), one for each along the last of them.
    """
    shape = shape_of(eqn.invars[weight_is_right])
    numbers = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "conv_general_dilated":
        return {shape[numbers[weight_is_right][0]]}
    contracted, batch = (axes[weight_is_right] for axes in numbers)
    free = [axis for axis in range(len(shape)) if axis not in (*contracted, *batch)]
    sizes = [shape[axis] for axis in (*batch, *free)]
    return set(itertools.accumulate(reversed(sizes), operator.mul))


def _kernels(fixed: Iterable[_Fixed]) -> frozenset[str]:
    return frozenset[str]().union(*(value.kernels for value in fixed))


def _size(atom: Any) -> int:
    return math.prod(shape_of(atom))
