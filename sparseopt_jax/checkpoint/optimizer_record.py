"""The record of the optimizer in a checkpoint, as far as its functions can be read."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from sparseopt_jax.checkpoint.described import Difference, compare, describe
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.tracing.transformation_links import Link, read, variables_of

# An owner of masks is recognised by its topology and named after the function that
# users call. Only its one setting that no array shows is recorded; the topology is
# recorded separately.
_OWNER = "sparsify"
# Seeds do not tell optimizers apart: a restored state has its own key.
_SEEDS = ("key", "seed", "rng", "rng_key")


def describe_optimizer(state: Any, optimizer: Any = None) -> dict[str, Any] | None:
    """Describe the optimizers of a state.

    Args:
      state: any pytree. The optimizers are the ``tx`` of its nodes, such as a
        ``TrainState``.
      optimizer: the transformation, if the state does not hold it.

    Returns:
      Their parts, and the hyper-parameters of all parts by name; None if there is no
      optimizer.
    """
    found = [optimizer] if optimizer is not None else []
    found += [node.tx for node in jax.tree.leaves(state, is_leaf=_has_tx) if _tx(node)]
    if not found:
        return None
    links = [read(tx) for tx in found]
    names, settings = [], {}
    for link in links:
        names.append(_names(link))
        for name, described in _settings(link):
            number = 2
            numbered = name
            while numbered in settings:
                numbered, number = f"{name} ({number})", number + 1
            settings[numbered] = described
    return {"made_of": "; ".join(names), "settings": settings}


def optimizer_differences(saved: Any, given: Any) -> list[Difference]:
    """Compare two results of ``describe_optimizer``.

    Args:
      saved: the checkpoint's; None if it has none.
      given: this run's; None if it is unknown.

    Returns:
      The differences.
    """
    if saved is None or given is None:
        return []
    if saved["made_of"] != given["made_of"]:
        both = saved["made_of"], given["made_of"]
        shared = saved["settings"].keys() & given["settings"].keys()
        saved, given = (
            {name: x for name, x in described["settings"].items() if name in shared}
            for described in (saved, given)
        )
        return [
            Difference("optimizer", *both, "differs"),
            *_compare_settings(saved, given),
        ]
    return _compare_settings(saved["settings"], given["settings"])


def _compare_settings(
    saved: Mapping[str, Any], given: Mapping[str, Any]
) -> list[Difference]:
    return [
        difference._replace(name=f"optimizer, {difference.name}")
        for difference in compare("", saved, given)
    ]


def _has_tx(node: Any) -> bool:
    return _tx(node) is not None


def _tx(node: Any) -> Any:
    tx = getattr(node, "tx", None)
    return tx if isinstance(tx, optax.GradientTransformation) else None


def _names(link: Link) -> str:
    """Return the transformations in order: ``sparsify(trace > scale)``."""
    if link.in_turn:
        return " > ".join(filter(None, map(_names, link.parts))) or "identity"
    parts = ", ".join(map(_names, link.parts))
    name = link.name if _topology(link) is None else _OWNER
    return f"{name}({parts})" if parts else name


def _settings(link: Link) -> Iterator[tuple[str, Any]]:
    """Yield the hyper-parameters of a transformation and of its parts, by name."""
    if _topology(link) is not None:
        yield f"{_OWNER}.host_updates", _leaves_updates_to_the_host(link)
    elif not link.in_turn:
        for name, value in sorted(_held(link).items()):
            if _is_recorded_elsewhere(name, value):
                continue
            described = describe(value, _is_recorded_elsewhere)
            if not _is_helper(described):
                yield f"{link.name}.{name}", described
    for part in link.parts:
        yield from _settings(part)


def _held(link: Link) -> Mapping[str, Any]:
    held: dict[str, Any] = {}
    for function in (link.init, link.update):
        held |= getattr(getattr(function, "__self__", None), "__dict__", {})
    return {**held, **link.variables}


def _topology(link: Link) -> Topology | None:
    """Return the topology of an owner of masks; None for other transformations."""
    values = _held(link).values()
    return next((value for value in values if isinstance(value, Topology)), None)


def _leaves_updates_to_the_host(link: Link) -> bool:
    held = dict(_held(link))
    for value in _held(link).values():
        if callable(value):  # a function that another one wraps
            held = {**variables_of(value), **held}
    topology = _topology(link)
    return topology is not None and topology.moves and held["host_updates"]


def _is_recorded_elsewhere(name: str, value: Any) -> bool:
    """Tell whether a value is a seed, or is or holds something recorded elsewhere."""
    if name in _SEEDS:
        return True
    if isinstance(value, optax.GradientTransformation | optax.MultiSteps | Topology):
        return True
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, tuple | list) and any(
        _is_recorded_elsewhere("", entry) for entry in value
    )


def _is_helper(described: Any) -> bool:
    """Tell whether a value is merely a function that a transformation makes itself."""
    return isinstance(described, str) and ".<locals>." in described
