"""The parts of a finished optax transformation, read from its closures."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import optax


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """A transformation and its parts.

    Attributes:
      name: the function that made it: ``"scale_by_adam"``, ``"chain"``, ``"ham"``.
      init: its ``init``.
      update: its ``update``.
      parts: the transformations inside, in order; none in a leaf.
      in_turn: whether the parts run one after another, as in a chain. Otherwise, one
        runs inside the wrapper, or several run side by side, as in a partition.
    """

    name: str
    init: Any
    update: Any
    parts: tuple["Link", ...] = ()
    in_turn: bool = False

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables of its functions by name, most of all hyper-parameters."""
        return {**variables_of(self.init), **variables_of(self.update)}

    def leaves(self) -> Iterator["Link"]:
        """Yield the link itself if it has no parts, or else the leaves of its parts."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


def read(tx: Any) -> Link:
    """Read the parts of a transformation.

    ``chain`` and ``named_chain`` are known. The parts of any other wrapper are the
    transformations in its closures (``masked``, ``partition``, ``apply_if_finite``,
    ``schedule_free``, ``sparsify``, ``ham``, custom wrappers), those that
    ``MultiSteps`` and other objects hold, and the one that ``inject_hyperparams`` makes
    from its initial hyper-parameters. Wrappers that only pass extra arguments, and
    ``jax.jit`` around a function, leave no trace.

    Args:
      tx: any transformation.

    Returns:
      The link.

    Examples:
      >>> import optax
      >>> link = read(optax.masked(optax.adam(1e-3), True))
      >>> link.name, link.parts[0].name, [leaf.name for leaf in link.leaves()]
      ('masked', 'chain', ['scale_by_adam', 'scale'])
    """
    return _read(tx.init, tx.update)


def links(tx: Any) -> list[Link]:
    """Read the transformations that do the work, in order, at any depth.

    Args:
      tx: any transformation.

    Returns:
      The leaves of ``read``; parts that run side by side come one after another.

    Examples:
      >>> import optax
      >>> tx = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
      >>> [link.name for link in links(tx)]
      ['clip', 'trace', 'scale']
    """
    return list(read(tx).leaves())


def variables_of(function: Any) -> dict[str, Any]:
    """Read the variables in a function's closure, by name.

    Args:
      function: any function, or ``jax.jit`` of one.

    Returns:
      The variables; none if it is not a Python function.
    """
    function = _unwrapped(function)
    names = getattr(code_of(function), "co_freevars", ())
    cells = (getattr(function, "__closure__", None) or ()) if names else ()
    found = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a name that is still unbound
            continue
    return found


def code_of(function: Any) -> Any:
    """Return the code object that all functions defined at the same place share.

    Args:
      function: any function, or ``jax.jit`` of one.

    Returns:
      Its code object; None if it is not a Python function.
    """
    return getattr(_unwrapped(function), "__code__", None)


def _read(init: Any, update: Any) -> Link:
    name, inside, at_init = _name(update), variables_of(update), variables_of(init)
    if name == "with_extra_args_support" and "tx" in inside:
        return read(inside["tx"])
    in_turn = False
    if name == "chain" and "update_fns" in inside and "init_fns" in at_init:
        pairs = zip(at_init["init_fns"], inside["update_fns"], strict=True)
        parts = [optax.GradientTransformation(*pair) for pair in pairs]
        in_turn = True
    elif name == "named_chain" and "transforms" in inside:
        parts = [tx for _, tx in inside["transforms"]]
        in_turn = True
    elif name == "inject_hyperparams" and "numeric_hps" in at_init:
        parts = [_injected(at_init)]
    else:
        parts = _held([*_held_by(init), *_held_by(update)])
    return Link(name, init, update, tuple(map(read, parts)), in_turn)


def _injected(variables: dict[str, Any]) -> Any:
    """Return what the factory makes of the hyper-parameters before the first step."""
    scheduled = {k: f(f.init()) for k, f in variables["sched_hps"].items()}
    return variables["inner_factory"](
        **variables["other_hps"], **variables["numeric_hps"], **scheduled
    )


def _held_by(function: Any) -> list[Any]:
    """Return the values in a function's closure and those of its object."""
    owner = getattr(_unwrapped(function), "__self__", None)
    of_owner = getattr(owner, "__dict__", {})
    return [*variables_of(function).values(), *of_owner.values()]


def _held(values: list[Any]) -> list[Any]:
    """Return the transformations among values and in their collections, once each."""
    found: dict[int, Any] = {}
    for value in values:
        if isinstance(value, Mapping):
            items = [*value.values()]
        elif isinstance(value, list | tuple) and not _is_transformation(value):
            items = [*value]
        else:
            items = [value]
        found |= {id(item): item for item in items if _is_transformation(item)}
    return [*found.values()]


def _is_transformation(x: Any) -> bool:
    # Not everything with an `init` and an `update`: topologies have both, too.
    return isinstance(x, optax.GradientTransformation | optax.MultiSteps)


def _unwrapped(function: Any) -> Any:
    """Return the Python function inside ``jax.jit`` or ``partial``."""
    # A function with its own code may do more than the one it wraps.
    while not hasattr(function, "__code__"):
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return function


def _name(update: Any) -> str:
    """Return the name of the factory: ``scale_by_adam`` for its ``update_fn``."""
    update = _unwrapped(update)
    name = getattr(update, "__qualname__", type(update).__name__)
    outer, _, inner = name.partition(".<locals>")
    return outer if inner else outer.partition(".")[0]
