"""What a finished optax transformation is made of, read from its closures."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import optax


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """A transformation, and those that it is made of.

    Attributes:
      name: the function that made it: ``"scale_by_adam"``, ``"chain"``, ``"ham"``.
      init: its ``init``.
      update: its ``update``.
      parts: the transformations inside, in order; none in a leaf.
      in_turn: whether the parts work one after another, as in a chain. Elsewhere one
        works inside the wrapper, or several work side by side, as in a partition.
    """

    name: str
    init: Any
    update: Any
    parts: tuple["Link", ...] = ()
    in_turn: bool = False

    @property
    def variables(self) -> Mapping[str, Any]:
        """What its functions hold by name, hyper-parameters above all."""
        return {**variables_of(self.init), **variables_of(self.update)}

    def leaves(self) -> Iterator["Link"]:
        """Itself, if it is made of nothing else, or the leaves of its parts."""
        if not self.parts:
            yield self
        for part in self.parts:
            yield from part.leaves()


def read(tx: Any) -> Link:
    """Reads what a transformation is made of.

    ``chain`` and ``named_chain`` are known. Of any other wrapper the transformations in
    its closures are its parts (``masked``, ``partition``, ``apply_if_finite``,
    ``schedule_free``, ``sparsify``, ``ham``, wrappers of one's own), as is what
    ``MultiSteps`` and other objects hold, and what ``inject_hyperparams`` makes of its
    first hyper-parameters. Wrappers for extra arguments only, and ``jax.jit`` around a
    function, leave no trace.

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
    """Reads the transformations that do the work, in order, out of any nest.

    Args:
      tx: any transformation.

    Returns:
      The leaves of ``read``; where parts work side by side, one after the other.

    Examples:
      >>> import optax
      >>> tx = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9))
      >>> [link.name for link in links(tx)]
      ['clip', 'trace', 'scale']
    """
    return list(read(tx).leaves())


def variables_of(function: Any) -> dict[str, Any]:
    """Reads the variables that a function has from where it was made, by name.

    Args:
      function: any function, or ``jax.jit`` of one.

    Returns:
      The variables; none for what is not a Python function.
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
    """Returns what all functions share that are made at the same place.

    Args:
      function: any function, or ``jax.jit`` of one.

    Returns:
      Its code object; None for what is not a Python function.
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
    """What the factory makes of the hyper-parameters before the first step."""
    scheduled = {k: f(f.init()) for k, f in variables["sched_hps"].items()}
    return variables["inner_factory"](
        **variables["other_hps"], **variables["numeric_hps"], **scheduled
    )


def _held_by(function: Any) -> list[Any]:
    """The values in a function's closure, and those of the object it belongs to."""
    owner = getattr(_unwrapped(function), "__self__", None)
    of_owner = getattr(owner, "__dict__", {})
    return [*variables_of(function).values(), *of_owner.values()]


def _held(values: list[Any]) -> list[Any]:
    """The transformations among values, and in collections among them, once each."""
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
    # Not whatever has an `init` and an `update`: topologies have them, too.
    return isinstance(x, optax.GradientTransformation | optax.MultiSteps)


def _unwrapped(function: Any) -> Any:
    """The Python function that ``jax.jit`` or ``partial`` compiles or completes."""
    # A function with code of its own may do more than the one it wraps.
    while not hasattr(function, "__code__"):
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return function


def _name(update: Any) -> str:
    """What made a function: for ``update_fn`` of ``scale_by_adam`` that name."""
    update = _unwrapped(update)
    name = getattr(update, "__qualname__", type(update).__name__)
    outer, _, inner = name.partition(".<locals>")
    return outer if inner else outer.partition(".")[0]
