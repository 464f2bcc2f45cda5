"""Masks as pytrees: apply them, and find them in any optimizer's state.

A tree of masks has the structure of the parameters: a bool array (True = active) at
each sparse leaf, ``optax.MaskedNode()`` at each dense one.
"""

import functools
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.arrays.conditions import chosen
from sparseopt_jax.masks.active_weights import ActiveIndices, Places
from sparseopt_jax.masks.compact_kernel import dense_shapes
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.trees import paths


class SparseState(NamedTuple):
    """State of ``sparsify``, the only place where masks are kept.

    Attributes:
      count: int32 scalar, number of steps taken. ``update_topology`` also counts those
        that a wrapper rejected since the last update.
      key: uint32 data of a PRNG key, the same on every replica and at every step.
      masks: bool or packed arrays, ``optax.MaskedNode()`` at dense leaves; or the
        ``ActiveIndices`` of a compact ``sparsify``.
      topology_state: state of the topology.
      inner_state: state of the inner transformation.
      layouts: uint8 array, how blocks are arranged in the leaves, which
        ``compact_params`` reads; ``()`` if no leaf consists of blocks.
    """

    count: jax.Array
    key: jax.Array
    masks: Any
    topology_state: Any
    inner_state: Any
    layouts: Any = ()


def is_sparse_state(x: Any) -> bool:
    """Return whether ``x`` is a state that holds masks."""
    return isinstance(x, SparseState)


def map_masked_with_path(
    function: Callable[..., Any], masks: Any, tree: Any, *rest: Any
) -> Any:
    """Map ``function(path, mask, leaf, *others)`` over the sparse leaves of ``tree``.

    Masks are looked up by path, so ``tree`` may be boxed, or have holes where the masks
    have none.

    Args:
      function: called at sparse leaves only.
      masks: tree of masks.
      tree: the tree that defines the structure; its dense leaves are kept.
      *rest: further trees of that structure.

    Returns:
      A tree like ``tree``.
    """
    by_path = paths.leaves_by_path(masks)

    def at_leaf(path, leaf, *others):
        mask = by_path.get(path)
        if mask is None or paths.is_hole(leaf):
            return leaf
        return function(path, mask, leaf, *others)

    return paths.map_with_paths(at_leaf, tree, *rest)


def map_masked(function: Callable[..., Any], masks: Any, tree: Any, *rest: Any) -> Any:
    """Map ``function(mask, leaf, *others)`` over the sparse leaves of ``tree``."""
    return map_masked_with_path(
        lambda path, *leaves: function(*leaves), masks, tree, *rest
    )


def zero_masked(masks: Any, tree: Any) -> Any:
    """Return ``tree`` with exact zeros where a mask is False, even for NaN or infinity.

    Leaves of type ``jax.ShapeDtypeStruct`` are kept, and NumPy arrays remain NumPy
    arrays, of which JAX might narrow the dtype.
    """

    def at_leaf(mask, x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        if isinstance(x, np.ndarray) and not isinstance(mask, Tracer):
            return np.where(mask, x, np.zeros((), x.dtype))
        return chosen(mask, x, 0)

    return map_masked(at_leaf, masks, tree)


def apply_masks(params: Any, opt_state_or_masks: Any) -> Any:
    """Set every inactive weight to exactly zero.

    Call it once after ``tx.init`` to start sparse; updates then keep the weights
    sparse. If the weights of all or some leaves stay dense (``ste``, ``sr_ste``,
    ``top_kast``), it returns the weights of the forward pass: call it at every step,
    outside of the differentiated function, and keep the dense weights.

    Args:
      params: any pytree of arrays. Compact parameters are returned unchanged.
      opt_state_or_masks: an optimizer state that holds a ``SparseState`` anywhere, or
        a tree of masks.

    Returns:
      A tree like ``params``; NumPy arrays remain NumPy arrays.

    Raises:
      TypeError: if the arguments are swapped.
      ValueError: if no masks are found, or a mask fits no parameter.

    Examples:
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, 2.0]])}
      >>> apply_masks(params, {"kernel": jnp.array([[True, False]])})
      {'kernel': Array([[1., 0.]], dtype=float32)}
    """
    call = "apply_masks(params, opt_state)"
    masks = masks_for(call, params, opt_state_or_masks)
    warn_of_averages(opt_state_or_masks)
    return zero_masked(masks, params)


def masks_for(call: str, params: Any, opt_state_or_masks: Any) -> Any:
    """Return the masks of parameters, from a state or a tree of masks.

    Args:
      call: the signature of the caller, for messages.
      params: any pytree of arrays.
      opt_state_or_masks: an optimizer state, or a tree of masks.

    Returns:
      Bool arrays, each with the shape of the parameter at its path.

    Raises:
      TypeError: if the arguments are swapped.
      ValueError: if no masks are found, or a mask fits no parameter.
    """
    check_order(call, params, opt_state_or_masks)
    if find_states(opt_state_or_masks):
        masks = get_masks(opt_state_or_masks)
    else:
        masks = opt_state_or_masks
        if not _is_like_masks(masks, params):
            raise ValueError(
                f"{_NO_MASKS}; or pass a tree of masks, bool arrays in the structure "
                "of the parameters"
            )
    check_masks_fit(masks, dense_shapes(params))
    return masks


_NO_MASKS = (
    "no masks found: the optimizer state holds no SparseState; build the optimizer "
    "with sparsify, sparseopt, sparse_sgd or sparse_adamw, and pass the state that its "
    "init or update returns"
)


def get_masks(opt_state: Any) -> Any:
    """Return the masks from anywhere in an optimizer state.

    Args:
      opt_state: any pytree that holds a ``SparseState``: the state of ``chain``,
        ``MultiSteps``, ``partition``, ``inject_hyperparams`` and the like, a train
        state, an ``nnx.Optimizer``, or the dictionaries and lists of a checkpoint that
        was restored without a target. Several states, as in ``partition``, are merged
        into one tree.

    Returns:
      Bool arrays in the structure of the parameters, ``optax.MaskedNode()`` at dense
      leaves.

    Raises:
      ValueError: if there are no masks.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> tx = so.sparsify(optax.adam(1e-3), so.static(0.75))
      >>> masks = so.get_masks(tx.init(params))
      >>> masks["bias"], int(masks["kernel"].sum())
      (MaskedNode(), 8)
    """
    return merged_masks(needed_states(opt_state))


def needed_states(opt_state: Any) -> list[SparseState]:
    """Return ``find_states``; raise a ValueError if there are none."""
    if states := find_states(opt_state):
        return states
    raise ValueError(f"{_NO_MASKS}; got {described(opt_state)}")


def merged_masks(states: list[SparseState]) -> Any:
    """Return the masks of several states in one tree; a hole if there are none."""
    masks = (_bools(unbox(state.masks)) for state in states)
    return functools.reduce(_merge, masks, optax.MaskedNode())


def _bools(masks: Any) -> Any:
    return masks.masks() if isinstance(masks, ActiveIndices) else unpack(masks)


def find_states(opt_state: Any) -> list[SparseState]:
    """Return every state with masks in a pytree, or in an object's ``opt_state``.

    States are also found if a tool has converted named tuples to dictionaries, as in
    checkpoints restored without a target, Flax's state dictionaries and ``nnx.state``.
    """
    tree = getattr(opt_state, "opt_state", opt_state)
    leaves = jax.tree.leaves(
        tree, is_leaf=lambda x: is_sparse_state(x) or _is_taken_apart(x)
    )
    found = [_rebuilt(x) if _is_taken_apart(x) else x for x in leaves]
    return [x for x in found if is_sparse_state(x)]


def places_of(opt_state: Any) -> Places:
    """Return layout and index of leaves with state for the active weights only."""
    found: Places = {}
    for state in find_states(opt_state):
        if isinstance(state.masks, ActiveIndices):
            found |= state.masks.places()
    return found


# Some tools omit fields without leaves, which ``inner_state`` and ``layouts`` may be.
_ALWAYS_THERE = {"count", "key", "masks", "topology_state"}


def _is_taken_apart(x: Any) -> bool:
    if not isinstance(x, Mapping):
        return False
    return _ALWAYS_THERE <= set(x) <= set(SparseState._fields)


def _rebuilt(parts: Mapping[str, Any]) -> SparseState:
    """Return the state that a dictionary was made from; inner state is unchanged."""
    fields = {name: parts.get(name, ()) for name in SparseState._fields}
    masks = _with_holes(unbox(parts["masks"]))
    if isinstance(masks, Mapping) and set(masks) == set(ActiveIndices._fields):
        masks = ActiveIndices(**masks)
    fields["masks"] = masks
    topology_state = parts["topology_state"]
    if isinstance(topology_state, Mapping):
        kept = {"explored": (), "turned": (), "memory": ()} | dict(topology_state)
        fields["topology_state"] = types.SimpleNamespace(**kept)
    return SparseState(**fields)


def _with_holes(masks: Any) -> Any:
    """Restore holes that a tool has replaced by None or an empty dictionary."""

    def is_empty(x):
        return x is None or (isinstance(x, Mapping) and not x)

    return jax.tree.map(
        lambda x: optax.MaskedNode() if is_empty(x) else x, masks, is_leaf=is_empty
    )


def check_order(call: str, other: Any, opt_state: Any) -> None:
    """Raise if an optimizer's state was passed as the wrong argument.

    Args:
      call: the signature of the caller, for the message.
      other: another argument.
      opt_state: the argument passed as the state.

    Raises:
      TypeError: if the masks are in ``other``, or ``opt_state`` is a transformation.
    """
    if callable(getattr(opt_state, "init", None)):
        raise TypeError(
            f"opt_state must be an optimizer's state, tx.init(params), got "
            f"{described(opt_state)}: call so.{call}"
        )
    if find_states(other) and not find_states(opt_state):
        raise TypeError(
            f"the arguments are swapped, got {described(opt_state)} in place of the "
            f"optimizer's state: call so.{call}"
        )


# Wrappers that move the weights after the optimizer inside, by the type of their state.
_AVERAGES = {
    optax.LookaheadState: "apply its updates with so.apply_updates",
    optax.contrib.ScheduleFreeState: "call sparsify(schedule_free(...), topology)",
    optax.contrib.MechanicState: "call sparsify(mechanize(...), topology)",
}


def warn_of_averages(opt_state: Any) -> None:
    """Warn of wrappers around ``sparsify`` that combine weights of several steps."""

    def is_average(x):
        return type(x) in _AVERAGES

    tree = getattr(opt_state, "opt_state", opt_state)
    for node in jax.tree.leaves(tree, is_leaf=is_average):
        inside = find_states(node) if is_average(node) else []
        if not all(map(_has_dense_weights, inside)):
            warnings.warn(
                f"the optimizer with the {type(node).__name__} is around sparsify and "
                "combines the weights of several steps, so dropped weights do not stay "
                f"at zero: {_AVERAGES[type(node)]}",
                stacklevel=3,
            )


def stays_dense(opt_state: Any) -> bool:
    """Return whether any masks act in the forward pass only: weights stay dense."""
    return any(map(_has_dense_weights, find_states(opt_state)))


def _has_dense_weights(state: SparseState) -> bool:
    # Topologies of the forward pass keep masks of the trained weights.
    return hasattr(state.topology_state, "trained")


def check_masks(masks: Any) -> None:
    """Raise unless every leaf is a bool array or a hole.

    Raises:
      ValueError: with the path and the dtype or type of the leaf.
    """
    for path, mask in paths.flatten_with_paths(masks):
        if not paths.is_hole(mask) and getattr(mask, "dtype", None) != jnp.bool_:
            what = getattr(mask, "dtype", type(mask).__name__)
            raise ValueError(
                f"masks must be bool arrays, True = active; {path!r} holds {what}"
            )


def _is_like_masks(tree: Any, params: Any) -> bool:
    """Return whether a tree may be one of masks, by its paths or its leaves."""
    known = {path for path, _ in paths.flatten_with_paths(params)}
    if any(path in known for path, _ in paths.flatten_with_paths(tree)):
        return True
    leaves = jax.tree.leaves(tree)
    return bool(leaves) and all(getattr(x, "dtype", None) == jnp.bool_ for x in leaves)


def check_masks_fit(masks: Any, params: Any) -> None:
    """Raise a ValueError unless every mask has the shape of its parameter."""
    check_masks(masks)
    leaves = paths.leaves_by_path(params)
    for path, mask in paths.leaves_by_path(masks).items():
        if path not in leaves:
            raise ValueError(
                f"masks hold {path!r}, which is not a parameter; the parameters are "
                f"{', '.join(leaves)}"
            )
        # Leaves without a mask may be anything, such as a module's functions.
        shape = jnp.shape(leaves[path])
        if jnp.shape(mask) != shape:
            raise ValueError(
                f"the mask at {path!r} has shape {jnp.shape(mask)}, but its parameter "
                f"has shape {shape}"
            )


def _merge(masks: Any, others: Any) -> Any:
    """Fill the holes of one tree from another; a hole may replace a subtree."""
    if paths.is_hole(masks):
        return others
    if paths.is_hole(others):
        return masks
    children, structure = jax.tree.flatten(masks, is_leaf=lambda x: x is not masks)
    if jax.tree_util.treedef_is_leaf(structure):
        return masks
    return structure.unflatten(map(_merge, children, structure.flatten_up_to(others)))


def unbox(masks: Any) -> Any:
    """Remove the variables that ``nnx.Optimizer`` wraps around every leaf."""

    def is_variable(x):
        return hasattr(x, "get_value")

    return jax.tree.map(
        lambda x: x.get_value() if is_variable(x) else x, masks, is_leaf=is_variable
    )
