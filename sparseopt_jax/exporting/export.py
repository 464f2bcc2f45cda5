"""Export of a sparse network to one file."""

import os
from typing import Any, Literal

import jax
import numpy as np

from sparseopt_jax.arguments.checks import check_concrete, check_single, described
from sparseopt_jax.exporting import formats
from sparseopt_jax.exporting.safetensors_file import DTYPES
from sparseopt_jax.files import atomic_file
from sparseopt_jax.masks.compact_kernel import (
    dense_shapes,
    is_compact,
    parameters_by_path,
)
from sparseopt_jax.masks.layouts import Layout, read_layouts
from sparseopt_jax.masks.state import find_states, masks_for
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.boxes import unbox_tree, unboxed
from sparseopt_jax.trees.prng_keys import is_typed


def export(
    path: str | os.PathLike[str],
    params: Any,
    opt_state_or_masks: Any,
    *,
    format: Literal["bitmask", "csr", "dense"] = "bitmask",
    overwrite: bool = False,
) -> None:
    """Write a sparse network to one file, without its inactive weights.

    The file gets its name once it is complete: if anything fails before, ``path`` is
    unchanged. ``so.load`` reads it back bit for bit, masks included.

    Args:
      path: the path of the file, used unchanged; the name may have any ending.
      params: any pytree of arrays and numbers, boxed or not. Compact parameters are
        written like dense ones.
      opt_state_or_masks: an optimizer state that holds a ``SparseState`` anywhere, or
        a tree of masks. Parameters without a mask are written in full.
      format: ``"bitmask"``, a safetensors file of the active weights and one bit for
        every weight; ``"csr"``, compressed rows in an npz file, as SciPy reads them;
        ``"dense"``, a safetensors file of full arrays and the bits of their masks.
      overwrite: whether to replace an existing file at ``path``, or the file that a
        symbolic link points to; its permissions are kept.

    Raises:
      TypeError: for a leaf that a file cannot hold, such as a PRNG key or a function,
        with its path; or if the arguments are swapped.
      ValueError: if ``path`` already exists, no masks are found, a mask does not fit a
        parameter, an inactive weight is not zero, which only ``"dense"`` keeps, or a
        parameter's name could not be read back from the file.
      OSError: if the file cannot be written.

    Note:
      Active weights that are zero, such as those just grown, are stored like any other.
      An inactive -0.0 is read back as 0.0.

    Examples:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.array([[1.5, 0.0], [0.0, 0.0]]), "bias": jnp.ones(2)}
      >>> masks = {"kernel": jnp.array([[True, False], [True, False]])}
      >>> path = os.path.join(tempfile.mkdtemp(), "network.safetensors")
      >>> so.export(path, params, masks)
      >>> so.load(path).masks["kernel"].tolist()
      [[True, False], [True, False]]
      >>> so.export(path, params, masks)
      Traceback (most recent call last):
      ...
      ValueError: path ... exists: pass overwrite=True to replace it, or another path
    """
    if format not in formats.FORMATS:
        raise ValueError(
            f"format must be one of {', '.join(map(repr, formats.FORMATS))}, got "
            f"{format!r}"
        )
    path = os.fsdecode(path)
    atomic_file.check_free(path, overwrite)
    form = formats.FORMATS[format]
    arrays, leaves = _contents(form, params, opt_state_or_masks)
    with atomic_file.written_whole(path, overwrite) as file:
        formats.write(file, form, arrays, leaves)


def _contents(
    form: formats.Format, params: Any, opt_state_or_masks: Any
) -> tuple[dict[str, np.ndarray], dict[str, formats.LeafMetadata]]:
    check_concrete((params, opt_state_or_masks), "export", "return its arguments first")
    check_single(find_states(opt_state_or_masks), "opt_state")
    call = "export(path, params, opt_state)"
    masks = masks_for(call, dense_shapes(params), opt_state_or_masks)
    masks = paths.leaves_by_path(unbox_tree(masks))
    leaves, layouts = parameters_by_path(params), _layouts(opt_state_or_masks)
    if not leaves:
        raise ValueError(f"params must hold arrays, got {described(params)}")
    arrays: dict[str, np.ndarray] = {}
    said: dict[str, formats.LeafMetadata] = {}
    for path, leaf in leaves.items():
        x = _on_host(path, leaf)
        said[path] = {"shape": list(x.shape), "dtype": x.dtype.name}
        layout = leaf.layout if is_compact(leaf) else layouts.get(path)
        if layout is not None and layout.units.inner:
            units = layout.units
            said[path]["block"] = [units.split[axis] for axis in units.inner]
        stored = {"": x}
        if path in masks:
            mask = np.asarray(masks[path])
            active = int(np.count_nonzero(mask))
            said[path]["active"] = active
            said[path]["sparsity"] = formats.sparsity(active, x.size)
            if not form.encoding.keeps_inactive:
                _check_zeros(path, x, mask)
            stored = form.encoding.encode(x, mask)
        for ending, part in stored.items():
            name = formats.stored_name(path, ending)
            problem = formats.name_problem(form, name)
            if name in arrays:
                problem = "two arrays would have this name"
            if problem is not None:
                raise ValueError(
                    f"the parameter at {path!r:.200} cannot be stored under the name "
                    f"{name!r:.200}: {problem}; rename the parameter"
                )
            arrays[name] = part
    return arrays, said


def _layouts(opt_state_or_masks: Any) -> dict[str, Layout]:
    """Return the layouts of leaves that consist of blocks, as recorded in states."""
    texts = [unboxed(state.layouts) for state in find_states(opt_state_or_masks)]
    noted = [read_layouts(text) for text in texts if np.size(text)]
    return {path: layout for layouts in noted for path, layout in layouts}


def _on_host(path: str, leaf: Any) -> np.ndarray:
    """Return a parameter as it is stored: contiguous, little-endian, of known dtype."""
    if is_compact(leaf):
        leaf = leaf.dense()
    if is_typed(leaf):
        raise TypeError(
            f"params hold a PRNG key at {path!r}, which is not a parameter: omit it, "
            "or pass its jax.random.key_data"
        )
    if isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
        raise ValueError(
            f"the array at {path!r} is on devices of several processes: gather it "
            "with jax.experimental.multihost_utils.process_allgather(params, "
            "tiled=True), and export in one process"
        )
    is_number = isinstance(leaf, bool | int | float | complex | np.generic)
    if not is_number and not isinstance(leaf, jax.Array | np.ndarray):
        raise TypeError(
            f"params must hold arrays and numbers, got {described(leaf)} at {path!r}: "
            "omit it, for example with equinox.filter(params, equinox.is_array)"
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(
            f"params hold a numpy.ma.MaskedArray at {path!r}, whose own mask cannot be "
            "stored: pass its filled(0)"
        )
    x = np.asarray(leaf)
    if x.dtype.name not in DTYPES:
        raise TypeError(
            f"params hold {x.dtype} at {path!r}, which cannot be stored; convert it to "
            f"one of {', '.join(DTYPES)}"
        )
    if x.dtype.byteorder == ">":
        x = x.astype(x.dtype.newbyteorder("<"))
    return np.ascontiguousarray(x).reshape(x.shape)


def _check_zeros(path: str, x: np.ndarray, mask: np.ndarray) -> None:
    lost = np.count_nonzero(x[~mask])
    if lost:
        raise ValueError(
            f"{lost} inactive weights at {path!r} are not zero and would be lost: pass "
            "so.apply_masks(params, opt_state), or format='dense', which keeps them"
        )
