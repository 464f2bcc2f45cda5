"""Canonical paths: the place of a leaf in any pytree, as one string."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import optax

from sparseopt_jax.trees.boxes import boxed_like, is_box, is_wrapper_class, unboxed

KeyPath = tuple[Any, ...]


def is_hole(x: Any) -> bool:
    """Tell whether ``x`` is the ``optax.MaskedNode`` in place of an omitted leaf."""
    return isinstance(x, optax.MaskedNode)


def _is_leaf(x: Any) -> bool:
    return is_hole(x) or (is_wrapper_class(type(x)) and is_box(x))


def leaves_with_path(
    tree: Any, is_leaf: Callable[[Any], bool] | None = None
) -> list[tuple[KeyPath, Any]]:
    """``jax.tree_util.tree_leaves_with_path``, with key paths that omit boxes.

    Boxes are recognised by their class, so that a field named ``value`` in any other
    class stays part of the path.

    Args:
      tree: any pytree.
      is_leaf: as in JAX; boxes are opened unless it stops at them.

    Returns:
      Key paths and leaves, in tree order.
    """

    def is_given(x: Any) -> bool:
        return is_leaf is not None and is_leaf(x)

    found = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: is_wrapper_class(type(x)) or is_given(x)
    ):
        if is_wrapper_class(type(leaf)) and not is_given(leaf):
            found += [
                (key_path + inner_path, x) for inner_path, x in _inside(leaf, is_leaf)
            ]
        else:
            found.append((key_path, leaf))
    return found


def _inside(box: Any, is_leaf: Callable[[Any], bool] | None) -> list:
    children = jax.tree_util.tree_leaves_with_path(box, is_leaf=lambda x: x is not box)
    if children and children[0][1] is box:  # of a class that JAX does not know
        return [((), unboxed(box))]
    return [
        # A single attribute names the box; one of several names a place.
        ((key_path if len(children) > 1 else ()) + inner_path, leaf)
        for key_path, child in children
        for inner_path, leaf in leaves_with_path(child, is_leaf)
    ]


def path_parts(key_path: KeyPath) -> tuple[str, ...]:
    """Return the parts of a key path as plain strings.

    Args:
      key_path: as returned by ``leaves_with_path``.

    Returns:
      One string for each dictionary key, attribute or index in the path; more for a key
      with slashes, as in Haiku.
    """
    parts: list[str] = []
    for entry in key_path:
        if isinstance(entry, jax.tree_util.GetAttrKey):
            parts.append(entry.name)
        elif isinstance(entry, jax.tree_util.SequenceKey):
            parts.append(str(entry.idx))
        elif isinstance(
            entry, (jax.tree_util.DictKey, jax.tree_util.FlattenedIndexKey)
        ):
            parts.extend(str(entry.key).split("/"))
        else:
            parts.append(str(entry))
    return tuple(parts)


def path_string(key_path: KeyPath) -> str:
    """Return a leaf's path as one string, the same for linen, nnx and any pytree.

    >>> tree = {"Block_0": {"Conv_0": {"kernel": 1.0}}}
    >>> [(key_path, _)] = leaves_with_path(tree)
    >>> path_string(key_path)
    'Block_0/Conv_0/kernel'
    """
    return "/".join(path_parts(key_path))


def unique_paths(key_paths: Iterable[KeyPath]) -> list[str]:
    """Return the paths as strings, each of which names only one leaf.

    Args:
      key_paths: of all leaves of a tree, as returned by ``leaves_with_path``.

    Returns:
      The paths, in the same order.

    Raises:
      ValueError: with a path that two leaves share, and the key path of each.
    """
    key_paths = list(key_paths)
    paths = [path_string(key_path) for key_path in key_paths]
    if len(set(paths)) < len(paths):
        first: dict[str, KeyPath] = {}
        for path, key_path in zip(paths, key_paths, strict=True):
            if path in first:
                one, other = map(jax.tree_util.keystr, (first[path], key_path))
                raise ValueError(
                    f"the path {path!r} belongs to two leaves, {one} and {other}: "
                    "leaves are identified by their paths, so rename one of the keys"
                )
            first[path] = key_path
    return paths


def flatten_with_paths(
    tree: Any, is_leaf: Callable[[Any], bool] = is_hole
) -> list[tuple[str, Any]]:
    """Return the leaves of ``tree`` in tree order, each after its canonical path.

    ``optax.MaskedNode`` holes count as leaves, and boxes appear neither in the paths
    nor in the leaves, so that all trees built for the same parameters have the same
    list of paths.

    Raises:
      ValueError: if two leaves have the same path.
    """
    leaves = leaves_with_path(tree, is_leaf)
    paths = unique_paths(key_path for key_path, _ in leaves)
    return [(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)]


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Return the leaves of ``tree`` by canonical path, in tree order, without holes."""
    return {path: x for path, x in flatten_with_paths(tree) if not is_hole(x)}


def nest(leaves: Mapping[str, Any]) -> Any:
    """Return leaves as nested dictionaries, with a key for each part of a path.

    Args:
      leaves: by path.

    Returns:
      The dictionaries; or the leaf itself, if it is the only one and has no path.

    Raises:
      ValueError: if a leaf's path is a prefix of another's.

    >>> nest({"head/kernel": 1, "head/bias": 2, "scale": 3})
    {'head': {'kernel': 1, 'bias': 2}, 'scale': 3}
    """
    if list(leaves) == [""]:
        return leaves[""]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"there is a leaf above {path!r}: rename one of them")
        if name in node:
            raise ValueError(f"there are leaves below {path!r}: rename it or them")
        node[name] = leaf
    return tree


def modules_by_path(tree: Any) -> dict[str, type]:
    """Return the class of the node that holds each leaf, by the leaf's path."""

    def walk(structure: Any, holder: type) -> list[type]:
        data = structure.node_data()
        if data is None:
            return [holder] * structure.num_leaves
        return [
            inner for child in structure.children() for inner in walk(child, data[0])
        ]

    holders = walk(jax.tree.structure(tree, is_leaf=_is_leaf), object)
    found = zip(flatten_with_paths(tree), holders, strict=True)
    return {path: holder for (path, _), holder in found}


def map_with_key_paths(
    function: Callable[..., Any],
    tree: Any,
    *rest: Any,
    is_leaf: Callable[[Any], bool] | None = None,
) -> Any:
    """``jax.tree_util.tree_map_with_path``, with key paths that omit boxes."""
    key_paths = [key_path for key_path, _ in leaves_with_path(tree, is_leaf)]
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_leaf)
    others = [structure.flatten_up_to(other) for other in rest]
    return structure.unflatten(map(function, key_paths, leaves, *others))


def map_with_paths(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Map ``function(path, leaf, *others)`` over ``tree``; holes count as leaves.

    Args:
      function: called with a canonical path and the leaves there, without boxes.
      tree: the tree that decides the structure.
      *rest: trees that have the structure of ``tree``, boxed or not, or subtrees at its
        leaves.

    Returns:
      The tree of the results. A result with the shape of a boxed leaf replaces it in
      the box; others have no box, because a box names the axes of its content.

    Raises:
      ValueError: if two leaves have the same path.
    """

    def at_leaf(path, *leaves):
        if not any(map(is_wrapper_class, map(type, leaves))):
            return function(path, *leaves)
        return boxed_like(leaves[0], function(path, *map(unboxed, leaves)))

    paths = [path for path, _ in flatten_with_paths(tree)]
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_leaf)
    others = [structure.flatten_up_to(other) for other in rest]
    return structure.unflatten(map(at_leaf, paths, leaves, *others))


def matches(path: str, pattern: str) -> bool:
    """Tell whether a glob over paths matches this path (``*`` crosses ``/``).

    >>> matches("Block_0/Conv_0/kernel", "Block_*/kernel")
    True
    """
    return fnmatch.fnmatchcase(path, pattern)


def check_patterns(
    patterns: Iterable[str], known_paths: Iterable[str], argument: str
) -> None:
    """Raise if a pattern matches none of the known paths.

    Args:
      patterns: globs over paths.
      known_paths: the paths that they may match.
      argument: the argument that holds the patterns, for the message.

    Raises:
      ValueError: with the pattern and the known paths.
    """
    known = list(known_paths)
    for pattern in patterns:
        if not any(matches(path, pattern) for path in known):
            raise ValueError(
                f"{argument}: the pattern {pattern!r} matches no leaf; "
                f"the paths are {', '.join(known) or '(none)'}"
            )


def first_match(path: str, patterns: Mapping[str, Any]) -> Any:
    """Return the value of the first pattern that matches ``path``, or None.

    >>> first_match("head/kernel", {"head/*": 0.5, "*": 0.9})
    0.5
    """
    for pattern, value in patterns.items():
        if matches(path, pattern):
            return value
    return None


def longest_ending(parts: tuple[str, ...], by_parts: Mapping[tuple, Any]) -> Any:
    """Return the value of the longest suffix of a path in the mapping, or None.

    This matches an optimizer's state to parameters: its path ends in the parameter's,
    and ``a/kernel`` is not mistaken for a top-level ``kernel``.

    >>> longest_ending(("0", "mu", "a", "kernel"), {("kernel",): 1, ("a", "kernel"): 2})
    2
    """
    for start in range(len(parts) + 1):
        if parts[start:] in by_parts:
            return by_parts[parts[start:]]
    return None
