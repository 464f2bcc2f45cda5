"""Shardings of an optimizer's state, derived from those of its parameters."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.engine.compact_state import state_shapes
from sparseopt_jax.masks.compact_kernel import CompactKernel, is_compact
from sparseopt_jax.masks.compact_storage import check_sharding
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.masks.state import places_of
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree


def state_sharding(
    tx: optax.GradientTransformation, params_or_shapes: Any, param_shardings: Any
) -> Any:
    """Return the shardings of the whole optimizer state, for ``jax.jit(tx.init)``.

    State that belongs to a parameter and has its shape, such as a mask or a moment, is
    sharded like the parameter. If one of its axes has size 1 instead (fan-ins), that
    axis is not sharded, but the others are, and neither are further axes in front
    (L-BFGS's memory). State of a compact ``sparsify``, and of compact parameters, is
    sharded along the axes that active weights do not cross. Everything else is
    replicated: counters, keys, factored moments.

    Args:
      tx: any optax transformation.
      params_or_shapes: the parameters, or ``jax.ShapeDtypeStruct`` in their place;
        Flax's boxes and NNX variables around them are kept.
      param_shardings: a ``NamedSharding`` per parameter, in the structure of the
        parameters, boxed or not, or a single one for all. For a compact parameter it is
        the sharding of its dense array.

    Returns:
      A tree like ``tx.init(params)``, or like the state that ``compact_params`` returns
      with ``params``, with a ``NamedSharding`` at each leaf.

    Raises:
      ValueError: if the shardings differ in structure from the parameters, or use
        several meshes; if active weights would have to be gathered from several
        devices, with the path of the first leaf that is split within its cells.
      TypeError: if one of them is not a ``NamedSharding``.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("model",))
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> shardings = {
      ...     "kernel": NamedSharding(mesh, P(None, "model")),
      ...     "bias": NamedSharding(mesh, P("model")),
      ... }
      >>> tx = so.sparse_sgd(0.1, so.rigl(0.75, every=100, stop=1000), momentum=0.9)
      >>> state_shardings = so.state_sharding(tx, params, shardings)
      >>> tuple(so.get_masks(state_shardings)["kernel"].spec)
      (None, 'model')
      >>> opt_state = jax.jit(tx.init, out_shardings=state_shardings)(params)
    """
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        params_or_shapes,
        is_leaf=is_compact,
    )
    plain_shapes = unbox_tree(shapes)
    if isinstance(param_shardings, NamedSharding):
        sharding = param_shardings
        param_shardings = jax.tree.map(lambda _: sharding, plain_shapes)
    by_parts, mesh = _by_parts(plain_shapes, unbox_tree(param_shardings))
    of_state = state_shapes(tx, params_or_shapes)
    layouts = {parts: layout for parts, (layout, _) in places_of(of_state).items()}
    for parts, layout in layouts.items():
        check_sharding("/".join(parts), layout, by_parts[parts][1])

    def of_shape(shape, parts):
        found = paths.longest_ending(parts, by_parts)
        layout = paths.longest_ending(parts, layouts)
        spec = None
        if found is not None:
            param_shape, sharding = found
            spec = _spec_of(shape, param_shape, sharding, layout)
        return NamedSharding(mesh, PartitionSpec() if spec is None else spec)

    def at_leaf(key_path, leaf):
        parts = paths.path_parts(key_path)
        if not is_compact(leaf):
            return of_shape(leaf.shape, parts)
        # The axis of a place's digits is not sharded.
        index = of_shape(leaf.places.shape[:-1], parts)
        return CompactKernel(of_shape(leaf.active.shape, parts), index, leaf.layout)

    return paths.map_with_key_paths(at_leaf, of_state, is_leaf=is_compact)


def _by_parts(shapes: Any, shardings: Any) -> tuple[dict[tuple[str, ...], Any], Any]:
    """Return the shape and sharding of each parameter by path parts, and the mesh."""
    leaves = paths.leaves_with_path(shapes)
    try:
        of_leaves = jax.tree.structure(shapes).flatten_up_to(shardings)
    except ValueError as error:
        raise ValueError(
            f"param_shardings must have the structure of the parameters: {error}"
        ) from error
    by_parts, meshes = {}, {}
    for (key_path, leaf), sharding in zip(leaves, of_leaves, strict=True):
        path = paths.path_string(key_path)
        if not isinstance(sharding, NamedSharding):
            raise TypeError(
                f"param_shardings must hold a NamedSharding for every parameter; "
                f"{path!r} holds {sharding!r}"
            )
        by_parts[paths.path_parts(key_path)] = leaf.shape, sharding
        meshes.setdefault(sharding.mesh, path)
    if len(meshes) != 1:
        listed = "; ".join(f"{path!r}: {mesh}" for mesh, path in meshes.items())
        raise ValueError(
            f"param_shardings must use one mesh, got {listed or 'no parameter'}"
        )
    return by_parts, next(iter(meshes))


def _spec_of(
    shape: tuple[int, ...],
    param_shape: tuple[int, ...],
    sharding: NamedSharding,
    layout: Layout | None,
) -> PartitionSpec | None:
    """Return the spec of an array of a parameter's state; None if it is replicated."""
    spec = _spec(shape, param_shape, sharding)
    if spec is None and layout is not None:
        spec = layout.spec(shape, sharding.spec)
    if spec is None and len(shape) > len(param_shape):
        rest = _spec_of(shape[1:], param_shape, sharding, layout)
        spec = None if rest is None else PartitionSpec(None, *rest)
    return spec


def _spec(
    shape: tuple[int, ...], param_shape: tuple[int, ...], sharding: NamedSharding
) -> PartitionSpec | None:
    """Return the parameter's spec without axes of size 1; None if shapes do not fit."""
    if len(shape) != len(param_shape):
        return None
    if any(
        size not in (n, 1) for size, n in zip(shape[:-1], param_shape, strict=False)
    ):
        return None
    entries = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    spec = [
        entry if size == n else None
        for size, n, entry in zip(shape, param_shape, entries, strict=True)
    ]
    if shape and shape[-1] not in (param_shape[-1], 1):
        if shape[-1] != -(-param_shape[-1] // 8):
            return None
        # Bytes of eight weights are split like the weights if shards are whole bytes.
        if sharding.shard_shape(param_shape)[-1] % 8 == 0:
            spec[-1] = entries[-1]
    return PartitionSpec(*spec)
