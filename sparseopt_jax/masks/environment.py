"""What an owner of masks tells the transformations inside of it.

The package's own transformations read the masks from a context, not from optax's extra
arguments: line searches and others raise on arguments that they do not know. A user's
transformation receives those that its ``update`` names.
"""

import contextlib
import contextvars
import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import optax

from sparseopt_jax.tracing.transformation_links import variables_of

# masks: tree of masks, or of ``ActiveWeights`` in a compact ``sparsify``.
# fan_ins: each neuron's number of active inputs, as ``TopologyState`` keeps them.
# neuron_dims: the axes of kernels, as given to the topology.
# batch_stats: running statistics, as a train state keeps them.
NAMES = ("masks", "fan_ins", "neuron_dims", "batch_stats")

_CURRENT: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar(
    "sparseopt_jax_environment", default=types.MappingProxyType({})
)

# Whose functions pass on what they are given, or read the context.
_OURS = __name__.partition(".")[0]
_LIBRARIES = {_OURS, "optax", "jax", "jaxlib", "flax", "chex", "numpy", "functools"}


@contextlib.contextmanager
def telling(environment: Mapping[str, Any]) -> Iterator[None]:
    """Tell the package's transformations something while the block runs."""
    token = _CURRENT.set({**_CURRENT.get(), **environment})
    try:
        yield
    finally:
        _CURRENT.reset(token)


def of_masks(masks: Any, fan_ins: Any, neuron_dims: Any) -> dict[str, Any]:
    """What an owner tells: its masks, what it has counted of them, and their axes."""
    return {"masks": masks, "fan_ins": fan_ins, "neuron_dims": neuron_dims}


def told(extra_args: Mapping[str, Any]) -> dict[str, Any]:
    """What an ``update`` is told, and what it is given as keywords, which comes first.

    Args:
      extra_args: the keywords.

    Returns:
      Both by name.
    """
    return {**_CURRENT.get(), **extra_args}


def run(
    inner: optax.GradientTransformationExtraArgs,
    named: frozenset[str],
    environment: Mapping[str, Any],
    *args: Any,
    **extra_args: Any,
) -> tuple[Any, Any]:
    """``inner.update(*args, **extra_args)``, in an environment.

    Args:
      inner: the transformation.
      named: what ``named_by(inner)`` gives, found once.
      environment: what to tell, by name.
      *args: updates, state and params.
      **extra_args: the caller's, which are all passed on.

    Returns:
      Updates and the new state.
    """
    by_keyword = {k: value for k, value in environment.items() if k in named}
    with telling(environment):
        return inner.update(*args, **(by_keyword | extra_args))


def named_by(inner: optax.GradientTransformation) -> frozenset[str]:
    """Return which names of the environment a user's transformations inside ask for.

    A transformation asks by naming an argument of its ``update``, such as ``*, masks``.
    One of the package's that is compiled by itself is given everything: what it reads
    from the context at its first call would be in the compiled function for good.

    Args:
      inner: any transformation; links of chains and what is wrapped is found by what
        functions refer to.

    Returns:
      Some of ``NAMES``.
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
    """All callables that a transformation refers to, itself included."""
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
        # A factory that builds the transformation only when it is called.
        known = function.__globals__
        found += [known[n] for n in function.__code__.co_names if n in known]
    return found


def _library(function: types.FunctionType) -> str:
    return str(function.__module__).partition(".")[0]


def _argument_names(code: types.CodeType) -> Iterator[str]:
    """The arguments of a function and of the functions defined in it."""
    yield from code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _argument_names(constant)
