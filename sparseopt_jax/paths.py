"""Canonical paths: where a leaf stands in any pytree, as one string."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax

from sparseopt_jax.boxes import boxed_like, is_box, unboxed

# Flax NNX variables and boxes such as `nn.Partitioned` keep their array under an
# attribute of this name, at some times and not at others: as a last part it names
# the box, not the place.
_BOX_ATTRIBUTE = "value"


def is_hole(x: Any) -> bool:
    """Whether ``x`` is the ``optax.MaskedNode`` that stands for a left-out leaf."""
    return isinstance(x, optax.MaskedNode)


def _is_leaf(x: Any) -> bool:
    return is_hole(x) or is_box(x)


def path_parts(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    """The parts of a JAX key path as plain strings, boxes left out.

    Args:
      key_path: a key path as ``jax.tree_util.tree_leaves_with_path`` gives it.

    Returns:
      One string for each dictionary key, attribute or index on the way.
    """
    parts = []
    for entry in key_path:
        if isinstance(entry, jax.tree_util.GetAttrKey):
            parts.append(entry.name)
        elif isinstance(entry, jax.tree_util.SequenceKey):
            parts.append(str(entry.idx))
        elif isinstance(
            entry, (jax.tree_util.DictKey, jax.tree_util.FlattenedIndexKey)
        ):
            parts.append(str(entry.key))
        else:
            parts.append(str(entry))
    if key_path and key_path[-1] == jax.tree_util.GetAttrKey(_BOX_ATTRIBUTE):
        parts.pop()
    return tuple(parts)


def path_string(key_path: tuple[Any, ...]) -> str:
    """A leaf's path as one string, the same for linen, nnx and any pytree.

    >>> tree = {"Block_0": {"Conv_0": {"kernel": 1.0}}}
    >>> [(key_path, _)] = jax.tree_util.tree_leaves_with_path(tree)
    >>> path_string(key_path)
    'Block_0/Conv_0/kernel'
    """
    return "/".join(path_parts(key_path))


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of ``tree`` in tree order, each behind its canonical path.

    ``optax.MaskedNode`` holes count as leaves, and boxes show neither in the paths nor
    in the leaves, so that every tree built for the same parameters gives the same list
    of paths.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_leaf)
    return [(path_string(key_path), unboxed(leaf)) for key_path, leaf in leaves]


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of ``tree`` by their canonical paths, in tree order, without holes."""
    return {path: x for path, x in flatten_with_paths(tree) if not is_hole(x)}


def map_with_paths(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps ``function(path, leaf, *others)`` over ``tree``; holes count as leaves.

    Args:
      function: called with a canonical path and the leaves that stand there, boxes
        taken off.
      tree: the tree that decides the structure.
      *rest: trees that have the structure of ``tree``, boxed or not, or subtrees at its
        leaves.

    Returns:
      The tree of the results. A result of the shape of a boxed leaf takes its place in
      the box; one of another shape has none, since a box names the axes of its content.
    """

    def at_leaf(key_path, leaf, *others):
        leaves = (unboxed(leaf), *map(unboxed, others))
        return boxed_like(leaf, function(path_string(key_path), *leaves))

    return jax.tree_util.tree_map_with_path(at_leaf, tree, *rest, is_leaf=_is_leaf)


def matches(path: str, pattern: str) -> bool:
    """Whether a glob over paths names this path (``*`` crosses ``/``).

    >>> matches("Block_0/Conv_0/kernel", "Block_*/kernel")
    True
    """
    return fnmatch.fnmatchcase(path, pattern)


def check_patterns(
    patterns: Iterable[str], known_paths: Iterable[str], argument: str
) -> None:
    """Raises if a pattern names none of the known paths.

    Args:
      patterns: globs over paths.
      known_paths: the paths that they may name.
      argument: what the patterns belong to, for the message.

    Raises:
      ValueError: with the pattern and the paths that there are.
    """
    known = list(known_paths)
    for pattern in patterns:
        if not any(matches(path, pattern) for path in known):
            raise ValueError(
                f"{argument}: the pattern {pattern!r} matches no leaf; "
                f"the paths are {', '.join(known) or '(none)'}"
            )


def first_match(path: str, patterns: Mapping[str, Any]) -> Any:
    """The value of the first pattern that names ``path``, or None.

    >>> first_match("head/kernel", {"head/*": 0.5, "*": 0.9})
    0.5
    """
    for pattern, value in patterns.items():
        if matches(path, pattern):
            return value
    return None


def longest_ending(parts: tuple[str, ...], by_parts: Mapping[tuple, Any]) -> Any:
    """The value of the longest ending of a path that is in the mapping, or None.

    How what an optimizer keeps is told to belong to a parameter: its path ends in the
    parameter's, and ``a/kernel`` is not mistaken for a top-level ``kernel``.

    >>> longest_ending(("0", "mu", "a", "kernel"), {("kernel",): 1, ("a", "kernel"): 2})
    2
    """
    for start in range(len(parts) + 1):
        if parts[start:] in by_parts:
            return by_parts[parts[start:]]
    return None


def kind_by_name(path: str) -> str:
    """What a leaf is by its name, if that is no kernel: bias, scale or embedding.

    >>> kind_by_name("layers/Dense_0/bias"), kind_by_name("layers/Dense_0/kernel")
    ('bias', '')
    """
    # Stacked layers give biases and scales two dimensions, and embeddings always have
    # them: only the name tells these from kernels.
    *parents, name = path.lower().split("/")
    parent = parents[-1] if parents else ""
    if name == "kernel":
        return ""
    if name == "bias" or name.endswith("_bias"):
        return "bias"
    if name == "scale" or name.endswith("_scale"):
        return "scale"
    embedding = ("embed", "wte", "wpe", "cls_token", "pos_table")
    if any(word in part for part in (parent, name) for word in embedding):
        return "embedding"
    return ""
