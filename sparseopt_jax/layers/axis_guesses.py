"""Kernels whose axes are a guess, according to name, rank and neighbours."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sparseopt_jax.layers.kernel_names import is_attention_output, is_projection
from sparseopt_jax.layers.leaf_kinds import kind_by_name
from sparseopt_jax.layers.neuron_dims import Axes, InferredDims
from sparseopt_jax.layers.neurons import Dims, chosen_dims, default_axes

REMEDY = "give the topology dims=so.infer_dims(apply_fn, variables, *inputs)"
_SHOWN = 3

# The largest ratio of heads x head_dim to features in attention, and the largest window
# of a convolution: a kernel beyond these is likely a stack.
_MOST_RATIO = 16
_WIDEST = 16


class Guess(NamedTuple):
    """A reason to doubt the axes of a kernel.

    Attributes:
      reason: in words.
      is_refuted: whether the axes are certainly wrong, not only uncertain.
    """

    reason: str
    is_refuted: bool = False


def guesses(
    dims: Dims, sparse: Iterable[str], leaves: Mapping[str, Any]
) -> dict[str, Guess]:
    """Return the sparse kernels whose axes follow a convention that may be wrong.

    Args:
      dims: as in ``resolve_axes``.
      sparse: the paths of the sparse leaves.
      leaves: all leaves, so that each kernel has its neighbours.

    Returns:
      The reasons to doubt the axes, by path.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> leaves = {"experts": jax.ShapeDtypeStruct((8, 64, 256), jnp.float32)}
      >>> print(guesses(None, leaves, leaves)["experts"].reason)
      its name and shape do not show what its 3 axes are
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    found = {}
    for path in sparse:
        if chosen_dims(dims, path, leaves[path])[0] is not None:
            continue
        axes = default_axes(path, leaves[path])
        guess = axes and _guess(path, axes, shapes)
        if guess and isinstance(dims, InferredDims) and path in dims.undecided:
            reason = f"{guess.reason}; infer_dims: {dims.undecided[path]}"
            guess = guess._replace(reason=reason)
        if guess:
            found[path] = guess
    return found


def by_reason(doubted: Mapping[str, Guess]) -> list[str]:
    """Return one line per reason, with the first few leaves it applies to.

    Args:
      doubted: the reasons to doubt the axes, by path.

    Returns:
      The lines.
    """
    leaves = defaultdict(list)
    for path, guess in doubted.items():
        leaves[guess.reason].append(path)
    return [
        ", ".join(found[:_SHOWN])
        + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        + f": {reason}"
        for reason, found in leaves.items()
    ]


def _guess(
    path: str, axes: Axes, shapes: Mapping[str, tuple[int, ...]]
) -> Guess | None:
    shape = shapes[path]
    module, _, name = path.rpartition("/")
    bias = _bias(path, shapes)
    # A bias has the shape of its module's outputs: this is stronger than any name.
    beside = bias is not None and _by_bias(shape, axes, bias)
    if beside is True:
        return None
    if beside:
        return Guess(beside, is_refuted=True)
    if "weight" in name.lower().split("_"):
        outputs = "(outputs, inputs)" if len(shape) == 2 else "(outputs, inputs, ...)"
        return Guess(f"a weight is {outputs} in Equinox and PyTorch")
    size = _stacked(module, shapes)
    if size is not None and len(shape) > 2:
        return Guess(f"the vectors beside it are stacked {size} times")
    if len(shape) == 2 or _is_known(path, shape, shapes):
        return None
    return Guess(f"its name and shape do not show what its {len(shape)} axes are")


def _bias(path: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the shape of the kernel's bias, if its module has exactly one."""
    module, _, name = path.rpartition("/")
    if name.lower() not in ("kernel", "w", "weight"):
        return None
    beside = {
        other.rpartition("/")[2]: shape
        for other, shape in shapes.items()
        if other.rpartition("/")[0] == module and other != path
    }
    biases = [shape for other, shape in beside.items() if other in ("bias", "b")]
    return tuple(n for n in biases[0] if n > 1) if len(biases) == 1 else None


def _by_bias(shape: tuple[int, ...], axes: Axes, bias: tuple[int, ...]) -> bool | str:
    """Return True if a bias confirms the axes, False if they stay open, or why not.

    Sizes of 1 are ignored.
    """

    def sizes(kept: Iterable[int]) -> tuple[int, ...]:
        return tuple(shape[axis] for axis in kept if shape[axis] > 1)

    confirms = sizes(axes.output) == bias
    last = len(shape) - 1
    others = [
        *([(0,)] if last else []),  # (outputs, inputs, ...)
        *[tuple(range(first, last + 1)) for first in range(1, last + 1)],
        *[(0, *range(first, last + 1)) for first in range(2, last + 1)],  # a stack
    ]
    fitting = {kept for kept in others if sizes(kept) == bias} - {axes.output}
    if confirms:
        return not fitting
    if not fitting:
        return False
    where = " or ".join(str(kept) for kept in sorted(fitting))
    return (
        f"its bias of shape {bias} lies along axes {where}, but the convention takes "
        f"{axes.output} for its outputs"
    )


def _stacked(module: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return the size of the leading axis that all leaves around share, or None."""
    parts = module.split("/") if module else []
    for count in range(len(parts), -1, -1):
        prefix = "/".join([*parts[:count], ""]) if count else ""
        around = {p: sizes for p, sizes in shapes.items() if p.startswith(prefix)}
        firsts = {sizes[0] if sizes else None for sizes in around.values()}
        if len(firsts) > 1:
            return None
        vectors = [
            p for p, sizes in around.items() if len(sizes) > 1 and _is_vector_by_name(p)
        ]
        if vectors:
            return firsts.pop()
    return None


def _is_vector_by_name(path: str) -> bool:
    name = path.lower().rpartition("/")[2]
    return kind_by_name(path) in ("bias", "scale") or name in ("b", "offset")


def _is_known(
    path: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Tell whether name and shape, of three axes or more, match a Flax module."""
    if is_projection(path, shape):
        return math.prod(shape[1:]) <= _MOST_RATIO * shape[0]
    if is_attention_output(path, shape):
        attention = path.rsplit("/", 2)[0] if path.count("/") > 1 else ""
        prefix = f"{attention}/" if attention else ""
        return any(
            sizes[-2:] == shape[:2]
            for other, sizes in shapes.items()
            if other.startswith(prefix) and is_projection(other, sizes)
        )
    window = shape[:-2]
    if max(window) > _WIDEST:
        return False
    is_square = len(set(window)) == 1
    is_called = any("conv" in part for part in path.lower().split("/")[-2:])
    if is_called:
        return is_square or all(size % 2 for size in window)
    return is_square and len(window) > 1
