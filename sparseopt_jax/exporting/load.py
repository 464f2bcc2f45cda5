"""Loading of a sparse network from a file."""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparseopt_jax.exporting import formats
from sparseopt_jax.exporting.encodings import typed
from sparseopt_jax.exporting.safetensors_file import DTYPES
from sparseopt_jax.masks.compact_kernel import (
    CompactKernel,
    dense_shapes,
    is_compact,
    parameters_by_path,
    write_places,
)
from sparseopt_jax.trees import paths

Number = bool | int | float | complex


class Loaded(NamedTuple):
    """The contents of a file.

    Attributes:
      params: the parameters; inactive weights are zero.
      masks: bool arrays in the structure of ``params``, ``optax.MaskedNode()`` at
        parameters without a mask. The ``masks=`` of a topology accepts them.
      metadata: the metadata of the file, a dictionary: its ``"format"``, the
        ``"version"`` of the format, that of ``"sparseopt_jax"``, the ``"sparsity"`` of
        all masks together, the ``"checksum"``, and ``"leaves"``, which holds for each
        parameter, by path, the shape and dtype, its active weights and sparsity, and
        the size of a ``"block"`` if it consists of blocks.
    """

    params: Any
    masks: Any
    metadata: formats.Metadata


def load(path: str | os.PathLike[str], like: Any = None) -> Loaded:
    """Read the parameters and masks that ``so.export`` has written, bit for bit.

    Args:
      path: the path of the file. Its first bytes determine the format.
      like: parameters with the structure to load into: any pytree of arrays or of
        ``jax.ShapeDtypeStruct``, boxed or not. Where it holds JAX arrays, so does the
        result, on the same devices; where it holds compact parameters, NumPy arrays or
        Python numbers, so does the result. Without it the result holds NumPy arrays in
        dictionaries nested according to the paths.

    Returns:
      Parameters, masks and the metadata of the file.

    Raises:
      ValueError: if ``so.export`` did not write the file, it is truncated or was
        changed, or its arrays do not match ``like``, with every difference, such as a
        number that its type in ``like`` cannot hold. Nothing is ever unpickled.
      OSError: if the file cannot be read.

    Examples:
      >>> import os, tempfile
      >>> import jax.numpy as jnp, optax
      >>> import sparseopt_jax as so
      >>> params = {"head": {"kernel": jnp.ones((4, 8)), "bias": jnp.zeros(8)}}
      >>> opt_state = so.sparsify(optax.adam(1e-3), so.static(0.75)).init(params)
      >>> path = os.path.join(tempfile.mkdtemp(), "network.safetensors")
      >>> so.export(path, so.apply_masks(params, opt_state), opt_state)
      >>> loaded = so.load(path, like=params)
      >>> loaded.params["head"]["kernel"].shape, loaded.metadata["sparsity"]
      ((4, 8), 0.75)
      >>> topology = so.rigl(masks=loaded.masks, every=100, stop=1_000)
    """
    path = os.fsdecode(path)
    data = _bytes(path)
    try:
        form, arrays, metadata = formats.read(data)
        leaves, masks = _decoded(form, arrays, metadata["leaves"])
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path!r} is not a complete file of so.export, and nothing was loaded: "
            f"{error}"
        ) from None
    except MemoryError as error:
        raise ValueError(
            f"{path!r} describes arrays that do not fit in memory: {error}"
        ) from None
    masks = {leaf: masks.get(leaf, optax.MaskedNode()) for leaf in leaves}
    if like is None:
        return Loaded(_nested(path, leaves), _nested(path, masks), metadata)
    wanted = parameters_by_path(like)
    _check_like(wanted, leaves)
    like = dense_shapes(like)

    def params_like(name: str, leaf: Any) -> Any:
        if paths.is_hole(leaf):
            return leaf
        if is_compact(wanted[name]):
            return _compact(name, wanted[name], leaves[name], masks[name])
        return _like(leaf, leaves[name])

    def masks_like(name: str, leaf: Any) -> Any:
        return leaf if paths.is_hole(leaf) else _where(leaf, masks[name])

    return Loaded(
        params=paths.map_with_paths(params_like, like),
        masks=paths.map_with_paths(masks_like, like),
        metadata=metadata,
    )


def _nested(path: str, leaves: Mapping[str, Any]) -> Any:
    try:
        return paths.nest(leaves)
    except ValueError as error:
        raise ValueError(
            f"{path!r} does not hold nested dictionaries: {error}; or pass like=, "
            "parameters to load into"
        ) from None


def _bytes(path: str) -> bytearray:
    with open(path, "rb") as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        del data[file.readinto(data) :]
    return data


def _decoded(
    form: formats.Format,
    arrays: Mapping[str, np.ndarray],
    said: Mapping[str, formats.LeafMetadata],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the parameters and masks by path, decoded from the stored arrays."""
    leaves, masks, unused = {}, {}, dict(arrays)
    for path, leaf in said.items():
        shape, dtype = tuple(leaf["shape"]), DTYPES[leaf["dtype"]]
        part = functools.partial(_part, unused, path)
        try:
            if "active" in leaf:
                leaves[path], masks[path] = form.encoding.decode(part, shape, dtype)
                active = np.count_nonzero(masks[path])
                if active != leaf["active"]:
                    raise ValueError(
                        f"{active} weights are active, and {leaf['active']} according "
                        "to its metadata"
                    )
            else:
                leaves[path] = typed(part(""), dtype)
                if leaves[path].shape != shape:
                    raise ValueError(
                        f"the shape is {leaves[path].shape}, and {shape} according to "
                        "its metadata"
                    )
        except ValueError as error:
            raise ValueError(f"the arrays of {path!r:.200}: {error}") from None
    if unused:
        raise ValueError(f"its metadata does not describe the array {min(unused)!r}")
    return leaves, masks


def _part(unused: dict[str, np.ndarray], path: str, ending: str) -> np.ndarray:
    name = formats.stored_name(path, ending)
    if name not in unused:
        raise ValueError(f"{name!r} is missing")
    return unused.pop(name)


def _check_like(wanted: Mapping[str, Any], leaves: Mapping[str, np.ndarray]) -> None:
    """Raise unless parameters have the paths, shapes and dtypes of those in a file."""
    lines = [f"{path}: only in the file" for path in leaves if path not in wanted]
    for path, leaf in wanted.items():
        x = leaves.get(path)
        if x is None:
            lines.append(f"{path}: only in like")
        elif _is_number(leaf):
            if x.shape:
                lines.append(f"{path}: {_kind(x)} in the file, a number in like")
            elif _as_number(x, type(leaf)) is None:
                lines.append(
                    f"{path}: {x.item()!r} in the file, which {type(leaf).__name__}, "
                    "the type of the number in like, cannot hold"
                )
        elif _kind(x) != _kind(leaf):
            lines.append(f"{path}: {_kind(x)} in the file, {_kind(leaf)} in like")
        elif not isinstance(leaf, np.ndarray | np.generic) and _narrows(x.dtype):
            lines.append(
                f"{path}: {x.dtype}, which JAX converts to {_narrows(x.dtype)} unless "
                "jax_enable_x64 is set: pass a NumPy array in like"
            )
    if lines:
        raise ValueError(
            "the file does not hold the parameters that like describes:\n  "
            + "\n  ".join(lines)
        )


def _narrows(dtype: np.dtype) -> np.dtype | None:
    """Return the dtype to which JAX converts a dtype; None if JAX keeps it."""
    given = jax.dtypes.canonicalize_dtype(dtype)
    return None if given == dtype else given


def _kind(x: Any) -> str:
    """Return dtype and shape, such as ``float32[4,8]``, in any byte order."""
    shape = ",".join(map(str, np.shape(x)))
    name = x.dtype.name if hasattr(x, "dtype") else type(x).__name__
    return f"{name}[{shape}]"


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, Number) and not hasattr(leaf, "dtype")


def _as_number(x: np.ndarray, number: type[Number]) -> Number | None:
    """Return a stored scalar as a Python number; None if the type cannot hold it."""
    value = x.item()
    try:
        converted = number(value)
    except (TypeError, ValueError, OverflowError):
        return None
    are_nan = converted != converted and value != value
    return converted if converted == value or are_nan else None


def _like(leaf: Any, x: np.ndarray) -> Any:
    """Convert a loaded array to its leaf's type: a number, a NumPy or a JAX array."""
    if _is_number(leaf):
        return _as_number(x, type(leaf))
    if isinstance(leaf, np.ndarray | np.generic):
        x = x.astype(leaf.dtype, copy=False)  # its byte order may be another
        return x[()] if isinstance(leaf, np.generic) else x
    return _where(leaf, x)


def _compact(path: str, like: CompactKernel, x: np.ndarray, mask: Any) -> CompactKernel:
    """Return the active blocks of a loaded array, as many as in a compact kernel."""
    layout = like.layout
    index = None if paths.is_hole(mask) else layout.index(jnp.asarray(mask))
    if index is None or not np.array_equal(layout.mask(index), mask):
        raise ValueError(
            f"the mask of {path!r} in the file does not consist of as many active "
            "blocks as the compact parameter in like: pass so.dense_params of it as "
            "like"
        )
    places = write_places(index).astype(like.places.dtype)
    active = layout.take(jnp.asarray(x), index)
    return CompactKernel(
        _where(like.active, active), _where(like.places, places), layout
    )


def _where(leaf: Any, x: Any) -> Any:
    """Put an array on the devices of its leaf; holes stay holes."""
    if (
        paths.is_hole(x)
        or _is_number(leaf)
        or isinstance(leaf, np.ndarray | np.generic)
    ):
        return x
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or not getattr(leaf, "committed", True):
        return jnp.asarray(x)
    return jax.device_put(x, sharding)
