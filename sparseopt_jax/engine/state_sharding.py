"""How an optimizer's state is sharded, derived from its parameters."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from sparseopt_jax.masks.compact_kernel import holds_compact
from sparseopt_jax.masks.compact_storage import check_sharding, layouts_of
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.masks.owners import find_owners
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree


def state_sharding(
    tx: optax.GradientTransformation, params_or_shapes: Any, param_shardings: Any
) -> Any:
    """The shardings of the whole optimizer state, for ``jax.jit(tx.init)``.

    What belongs to a parameter and has its shape, such as a mask or a moment, is
    sharded like it. An axis of size 1 in its place (fan-ins) is not sharded, the others
    are; what a compact ``sparsify`` keeps is sharded along the axes that its active
    weights do not cross. Everything else is replicated: counters, keys, factored
    moments.

    Args:
      tx: any optax transformation.
      params_or_shapes: the parameters, or ``jax.ShapeDtypeStruct`` in their place;
        Flax's boxes and NNX variables around them stay.
      param_shardings: a ``NamedSharding`` for each parameter, in the structure of the
        parameters, boxed or not, or a single one for all.

    Returns:
      A tree like ``tx.init(params)`` with a ``NamedSharding`` at each leaf.

    Raises:
      ValueError: for compact parameters; if the shardings have another structure than
        the parameters, or are of several meshes; if active weights of a compact
        ``sparsify`` would have to be gathered from several devices.
      TypeError: if one of them is no ``NamedSharding``.

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
    if holds_compact(params_or_shapes):
        raise ValueError(
            "params are compact: place dense parameters and opt_state by their "
            "shardings before so.compact_params(params, opt_state), which keeps them"
        )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params_or_shapes
    )
    plain_shapes = unbox_tree(shapes)
    if isinstance(param_shardings, NamedSharding):
        sharding = param_shardings
        param_shardings = jax.tree.map(lambda _: sharding, plain_shapes)
    by_parts, mesh = _by_parts(plain_shapes, unbox_tree(param_shardings))

    layouts = _layouts(tx, shapes, by_parts)

    def at_leaf(key_path, leaf):
        parts = paths.path_parts(key_path)
        found = paths.longest_ending(parts, by_parts)
        spec = None if found is None else _spec(leaf.shape, *found)
        layout = paths.longest_ending(parts, layouts)
        if spec is None and found is not None and layout is not None:
            spec = layout.spec(leaf.shape, found[1].spec)
        return NamedSharding(mesh, PartitionSpec() if spec is None else spec)

    return paths.map_with_key_paths(at_leaf, jax.eval_shape(tx.init, shapes))


def _layouts(
    tx: optax.GradientTransformation, shapes: Any, by_parts: dict[tuple[str, ...], Any]
) -> dict[tuple[str, ...], Layout]:
    """How active weights stand side by side, where ``sparsify`` is compact."""
    found = {}
    for owner in find_owners(tx, shapes):
        if not owner.storage.is_compact:
            continue
        for path, layout in layouts_of(owner.topology, owner.seen(shapes)).items():
            parts = tuple(path.split("/"))
            check_sharding(path, layout, by_parts[parts][1])
            if not layout.is_full:
                found[parts] = layout
    return found


def _by_parts(shapes: Any, shardings: Any) -> tuple[dict[tuple[str, ...], Any], Any]:
    """Shape and sharding of each parameter by the parts of its path, and the mesh."""
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
                f"param_shardings must hold a NamedSharding for every parameter; at "
                f"{path!r} stands {sharding!r}"
            )
        by_parts[paths.path_parts(key_path)] = leaf.shape, sharding
        meshes.setdefault(sharding.mesh, path)
    if len(meshes) != 1:
        listed = "; ".join(f"{path!r}: {mesh}" for mesh, path in meshes.items())
        raise ValueError(
            f"param_shardings must be of one mesh, got {listed or 'no parameter'}"
        )
    return by_parts, next(iter(meshes))


def _spec(
    shape: tuple[int, ...], param_shape: tuple[int, ...], sharding: NamedSharding
) -> PartitionSpec | None:
    """The parameter's spec without the axes that have shrunk to 1; None if unlike."""
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
        # Bytes of eight weights: split like them where that gives whole bytes.
        if sharding.shard_shape(param_shape)[-1] % 8 == 0:
            spec[-1] = entries[-1]
    return PartitionSpec(*spec)
