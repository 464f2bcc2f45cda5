"""How layers share a budget of active weights: static integers."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sparseopt_jax.arguments.checks import number
from sparseopt_jax.layers.first_layer import Ends, first_layer
from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.trees import paths

__all__ = [
    "Distribution",
    "First",
    "Layer",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "uniform",
]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A sparse leaf, as seen by a distribution.

    Attributes:
      path: the leaf's canonical path.
      shape: shape of a single layer of the stack, without the stack axes.
      copies: how many layers the leaf stacks (1 without stack axes).
      inputs: size of the input channel axis (the last reduction axis).
      outputs: number of neurons.
    """

    path: str
    shape: tuple[int, ...]
    copies: int
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        """Number of weights in a single layer of the stack."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, path: str, leaf: Any, axes: Axes) -> "Layer":
        """Return the layer of a kernel with these axes."""
        return cls(
            path=path,
            shape=tuple(leaf.shape[a] for a in axes.layer),
            copies=math.prod(leaf.shape[a] for a in axes.batch),
            inputs=leaf.shape[axes.reduction[-1]],
            outputs=math.prod(leaf.shape[a] for a in axes.output),
        )


First = bool | str | Collection[str] | None
"""What ``uniform`` keeps dense: the layer it finds, those matched by globs, or none."""

Distribution = Callable[[Sequence[Layer], float], Mapping[str, int]]
"""Maps layers and a sparsity to the active weights of a single layer, by path."""


def uniform(
    layers: Sequence[Layer], sparsity: float, *, first: First = True
) -> dict[str, int]:
    """Give all layers but the first, which stays dense, the same sparsity.

    Args:
      layers: the sparse layers.
      sparsity: fraction of zeros in every layer but the first.
      first: globs over the paths of layers that stay dense; None or False for none;
        True for the network's first layer, found by names and shapes
        (``first_layer``). A single layer is always sparse.

    Returns:
      Active weights per single layer, by path.

    Raises:
      ValueError: if the first layer is ambiguous.

    References:
      Evci et al., RigL, 2020 (arXiv 1911.11134), section 3 (1).
    """
    if first is True:
        ends = tuple(
            Ends(
                layer.path,
                (layer.inputs,),
                layer.outputs,
                window=len(layer.shape) - 2 if layer.outputs == layer.shape[-1] else 0,
            )
            for layer in layers
        )
        first = (first_layer(ends),) if len(layers) > 1 else ()
    globs = (first,) if isinstance(first, str) else first or ()
    return {
        layer.path: layer.size
        if any(paths.matches(layer.path, glob) for glob in globs)
        else _rounded(layer.size, sparsity)
        for layer in layers
    }


def erdos_renyi(layers: Sequence[Layer], sparsity: float) -> dict[str, int]:
    """Make densities proportional to (inputs + outputs) / (inputs * outputs).

    Args:
      layers: the sparse layers.
      sparsity: fraction of zeros over all of them.

    Returns:
      Active weights per single layer, by path; their total is the budget exactly.

    References:
      Mocanu et al., SET, 2018; Evci et al., RigL, 2020 (arXiv 1911.11134), section 3.
    """
    return _scaled(layers, sparsity, lambda layer: (layer.inputs, layer.outputs))


def erdos_renyi_kernel(layers: Sequence[Layer], sparsity: float) -> dict[str, int]:
    """Make densities proportional to the sum over the product of all kernel sizes.

    A layer whose density would exceed 1 stays dense. Its weights leave the budget, and
    the other densities are solved again.

    Args:
      layers: the sparse layers.
      sparsity: fraction of zeros over all of them.

    Returns:
      Active weights per single layer, by path; their total is the budget exactly.

    References:
      Evci et al., RigL, 2020 (arXiv 1911.11134), section 3 and its published code.
    """
    return _scaled(layers, sparsity, lambda layer: layer.shape)


DISTRIBUTIONS: dict[str, Distribution] = {
    "erdos_renyi": erdos_renyi,
    "erdos_renyi_kernel": erdos_renyi_kernel,
    "uniform": uniform,
}


def check_sparsity(sparsity: Any, name: str = "sparsity") -> float:
    """Return the sparsity as a float.

    Raises:
      TypeError: if it is not a number.
      ValueError: if it is outside [0, 1), or NaN.
    """
    return number(name, sparsity, 0, below=1)


def check_distribution(distribution: Any) -> None:
    """Raise unless ``allocate`` accepts this distribution.

    Raises:
      ValueError: for an unknown name, with the known ones.
      TypeError: for anything but a name, mapping or function.
    """
    if isinstance(distribution, str):
        if distribution not in DISTRIBUTIONS:
            raise ValueError(
                f"distribution must be one of {', '.join(DISTRIBUTIONS)}, "
                f"got {distribution!r}"
            )
    elif isinstance(distribution, Mapping):
        for pattern, value in distribution.items():
            check_sparsity(value, f"distribution[{pattern!r}]")
    elif not callable(distribution):
        raise TypeError(
            "distribution must be a name, a mapping from path patterns to sparsities, "
            f"or a function, got {distribution!r}"
        )


def check_first(first: Any, distribution: Any) -> None:
    """Raise unless ``first`` specifies which layers a distribution keeps dense.

    Raises:
      TypeError: for any other kind of value.
      ValueError: for globs with any distribution but ``"uniform"``.
    """
    if first is None or isinstance(first, bool):
        return
    is_globs = isinstance(first, Collection) and all(isinstance(x, str) for x in first)
    if not is_globs:
        raise TypeError(
            "first must be a glob over paths, several globs, True to find the layer by "
            f"names and shapes, or None for no dense first layer, got {first!r}"
        )
    if distribution != "uniform":
        raise ValueError(
            f"first={first!r} needs distribution='uniform', which keeps a layer "
            f"dense, got {distribution!r}"
        )


def allocate(
    distribution: str | Mapping[str, float] | Distribution,
    layers: Sequence[Layer],
    sparsity: float,
    *,
    first: First = True,
) -> dict[str, int]:
    """Share the budget of active weights between layers.

    Args:
      distribution: a name in ``DISTRIBUTIONS``; a mapping from globs over paths to
        sparsities, where the first match decides and the rest have ``sparsity``; or a
        function of the layers and the sparsity.
      layers: the sparse layers.
      sparsity: fraction of zeros, in [0, 1).
      first: what ``uniform`` keeps dense.

    Returns:
      Active weights per single layer, by path.

    Raises:
      ValueError: if a pattern matches nothing, or a layer would keep no weight.

    Examples:
      >>> layers = [Layer("a", (4, 8), 1, 4, 8), Layer("b", (8, 8), 1, 8, 8)]
      >>> allocate({"a": 0.5}, layers, 0.75)
      {'a': 16, 'b': 16}
    """
    if distribution == "uniform":
        counts = uniform(layers, sparsity, first=first)
    elif isinstance(distribution, str):
        counts = DISTRIBUTIONS[distribution](layers, sparsity)
    elif isinstance(distribution, Mapping):
        paths.check_patterns(
            distribution, [layer.path for layer in layers], "distribution"
        )
        counts = {}
        for layer in layers:
            chosen = paths.first_match(layer.path, distribution)
            counts[layer.path] = _rounded(
                layer.size, sparsity if chosen is None else chosen
            )
    else:
        counts = distribution(layers, sparsity)
    for layer in layers:
        active = counts[layer.path]
        if not 1 <= active <= layer.size:
            raise ValueError(
                f"sparsity {sparsity} would leave {layer.path!r} {active} of "
                f"{layer.size} weights; a sparse layer keeps at least one: lower the "
                "sparsity, give this layer its own in a distribution mapping, or "
                "exclude it with where"
            )
    return dict(counts)


def _rounded(size: int, sparsity: float) -> int:
    return round(size * (1.0 - sparsity))


def _scaled(
    layers: Sequence[Layer],
    sparsity: float,
    dims: Callable[[Layer], tuple[int, ...]],
) -> dict[str, int]:
    """Meet the budget with densities eps * sum(dims) / prod(dims), at most 1."""
    raw = {layer.path: sum(dims(layer)) / math.prod(dims(layer)) for layer in layers}
    total = sum(layer.size * layer.copies for layer in layers)
    budget = _rounded(total, sparsity)
    full: set[str] = set()
    while True:
        free = [layer for layer in layers if layer.path not in full]
        left = budget - sum(
            layer.size * layer.copies for layer in layers if layer.path in full
        )
        weight = sum(raw[layer.path] * layer.size * layer.copies for layer in free)
        eps = left / weight if free else 0.0
        # The tolerance treats a layer that is dense up to rounding as dense.
        over = {layer.path for layer in free if eps * raw[layer.path] > 1 - 1e-9}
        if not over:
            break
        full |= over
    shares = {
        layer.path: float(layer.size)
        if layer.path in full
        else eps * raw[layer.path] * layer.size
        for layer in layers
    }
    return _whole(layers, shares, budget)


def _whole(
    layers: Sequence[Layer], shares: Mapping[str, float], budget: int
) -> dict[str, int]:
    """Round shares to integers that sum to the budget, by largest remainder.

    A stacked layer takes one weight per copy, so with stacks the total may miss the
    budget by less than the largest number of copies.
    """
    counts = {path: math.floor(share + 1e-9) for path, share in shares.items()}
    left = budget - sum(counts[layer.path] * layer.copies for layer in layers)
    by_remainder = sorted(
        layers, key=lambda layer: counts[layer.path] - shares[layer.path]
    )
    for layer in by_remainder:
        if layer.copies <= left and counts[layer.path] < layer.size:
            counts[layer.path] += 1
            left -= layer.copies
    return counts
