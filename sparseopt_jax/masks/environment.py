"""The values that an owner of masks passes to its inner transformations.

The package's own transformations read the masks from a context, not from optax's extra
arguments, because line searches and others raise for arguments that they do not know. A
user's transformation receives the values that its ``update`` names.
"""

import contextlib
import contextvars
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import optax

from sparseopt_jax.masks.storage import MaskStorage, View
from sparseopt_jax.tracing.transformation_links import variables_of

# masks: tree of masks, or of ``ActiveWeights`` in a compact ``sparsify``.
# trained_masks: the same, of the weights that the optimizer trains; holes at leaves of
#   which it trains all weights. They differ from ``masks`` if those are of the forward
#   pass only.
# fan_ins: each neuron's number of active inputs, as in ``TopologyState``.
# neuron_dims: the axes of kernels, as given to the topology.
# batch_stats: running statistics, as in a train state.
NAMES = ("masks", "trained_masks", "fan_ins", "neuron_dims", "batch_stats")

# In place of ``batch_stats`` that are not known when an update is only traced.
UNKNOWN = object()

_CURRENT: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "sparseopt_jax_environment", default=types.MappingProxyType({})
)

# Functions of these packages pass on their arguments, or read the context.
_OURS = __name__.partition(".")[0]
_LIBRARIES = {_OURS, "optax", "jax", "jaxlib", "flax", "chex", "numpy", "functools"}


@contextlib.contextmanager
def using(environment: Mapping[str, Any]) -> Iterator[None]:
    """Set values that the package's transformations read while the block runs."""
    token = _CURRENT.set({**_CURRENT.get(), **environment})
    try:
        yield
    finally:
        _CURRENT.reset(token)


def of_view(
    storage: MaskStorage, view: View, fan_ins: Any, neuron_dims: Any
) -> dict[str, Any]:
    """Return an owner's environment: its masks, their fan-ins and the axes."""
    return {
        "masks": storage.inner_masks(view),
        "trained_masks": storage.trained_masks(view),
        "fan_ins": fan_ins,
        "neuron_dims": neuron_dims,
    }


def values(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the environment of an ``update``, overridden by its keyword arguments.

    Args:
      extra_args: the keyword arguments.

    Returns:
      The values of both by name.
    """
    return {**_CURRENT.get(), **extra_args}


def run(
    inner: optax.GradientTransformationExtraArgs,
    named: frozenset[str],
    environment: Mapping[str, Any],
    *args: Any,
    **extra_args: Any,
) -> tuple[Any, Any]:
    """Call ``inner.update(*args, **extra_args)`` in an environment.

    Args:
      inner: the transformation.
      named: the result of ``named_by(inner)``, computed once.
      environment: the values to pass, by name.
      *args: updates, state and params.
      **extra_args: the caller's keyword arguments, all of which are passed on.

    Returns:
      Updates and the new state.
    """
    by_keyword = {k: value for k, value in environment.items() if k in named}
    with using(environment):
        return inner.update(*args, **(by_keyword | extra_args))


def named_by(inner: optax.GradientTransformation) -> frozenset[str]:
    """Return the names of the environment that a user's transformations ask for.

    A transformation asks by naming an argument of its ``update``, such as ``*, masks``.
    A jitted transformation of the package is passed all names: a value that it read
    from the context would become a constant of the function compiled at its first call.

    Args:
      inner: any transformation; links of chains and wrapped transformations are found
        by following the references of functions.

    Returns:
      A subset of ``NAMES``.
    """
    names: set[str] = set()
    for function in _reachable(inner):
        if isinstance(function, types.FunctionType):
            if _library(function) not in _LIBRARIES:
                names.update(_argument_names(function.__code__))
        elif _is_compiled(function) and any(map(_is_ours, _reachable(function))):
            names.update(NAMES)
    return frozenset(names) & frozenset(NAMES)


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "lower") and hasattr(function, "eval_shape")


def _is_ours(function: Any) -> bool:
    return isinstance(function, types.FunctionType) and _library(function) == _OURS


def _reachable(root: Any) -> Iterator[Any]:
    """Yield all callables that a transformation refers to, itself included."""
    seen: set[int] = set()
    left = [root]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, type | types.ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, tuple | list):
            left.extend(value)
        elif isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, functools.partial):
            left.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.MethodType):
            left.extend((value.__func__, *vars(value.__self__).values()))
        elif callable(value):
            yield value
            left.extend(_referred(value))


def _referred(function: Any) -> list[Any]:
    found = [getattr(function, "__wrapped__", None)]
    if not isinstance(function, types.FunctionType):
        call = vars(type(function)).get("__call__")
        return [*found, call] if isinstance(call, types.FunctionType) else found
    found += variables_of(function).values()
    if _library(function) not in _LIBRARIES:
        # It may be a factory that builds the transformation only when called.
        known = function.__globals__
        found += [known[n] for n in function.__code__.co_names if n in known]
    return found


def _library(function: types.FunctionType) -> str:
    return str(function.__module__).partition(".")[0]


def _argument_names(code: types.CodeType) -> Iterator[str]:
    """Yield the argument names of a function and of the functions defined in it."""
    yield from code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _argument_names(constant)
