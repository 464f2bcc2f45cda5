"""The first layer of a network, found by names and shapes.

Trees do not keep the order of a network: dictionaries are sorted by their keys. Two
clues remain. Numbers in paths: ``Dense_1`` is not first if there is a ``Dense_0``, nor
is Haiku's ``linear_1`` beside ``linear``, nor the second item of a list. Widths: a
later layer's inputs are the outputs of others, unchanged, flattened, concatenated,
split or grouped; a layer whose inputs none of these explains is the first. A
two-dimensional convolution of at most four channels reads an image: the outputs of a
head, such as four actions or three colours, do not explain it.

If several layers remain, or none, the first layer is ambiguous: this is an error, not
a guess.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sparseopt_jax.layers.neurons import Axes, Dims, chosen_dims

_MOST_CHANNELS = 4  # of an image: grey, RGB, with alpha, or four frames
_SHOWN = 8


class Ends(NamedTuple):
    """The sizes of a kernel that show its place in a network.

    Attributes:
      path: the leaf's canonical path.
      inputs: possible numbers of input features: one, or two if axes of heads look like
        those of a convolution.
      outputs: number of neurons.
      window: number of further axes, such as a window's, that its neurons sum over.
    """

    path: str
    inputs: tuple[int, ...]
    outputs: int
    window: int


def ends_of(path: str, leaf: Any, axes: Axes, dims: Dims, bias: Any) -> Ends:
    """Return the ends of a kernel.

    A ``weight`` that ``dims`` do not mention has its outputs first, as in PyTorch and
    Equinox, unless its bias has the size of the last axis only.

    Args:
      path: the leaf's canonical path.
      leaf: anything with a ``shape``.
      axes: its axes.
      dims: as in ``static``.
      bias: the bias beside it, or None.
    """
    shape = list(leaf.shape)
    name = path.rpartition("/")[2].lower()
    if "weight" in name and chosen_dims(dims, path, leaf)[0] is None:
        size = 0 if bias is None else max(np.shape(bias), default=1)
        stacked = bias is not None and [*np.shape(bias)] == shape[:2] and len(shape) > 2
        if stacked and 1 not in shape[1:2]:
            shape = shape[1:]
        if stacked or size in (0, shape[0]) or size != shape[-1]:
            return Ends(path, (shape[1],), shape[0], len(shape) - 2)
    reduction = [shape[a] for a in axes.reduction]
    outputs = math.prod(shape[a] for a in axes.output)
    inputs = {reduction[-1]}
    if len(reduction) == 2:
        inputs.add(math.prod(reduction))  # heads and their features
    return Ends(path, tuple(sorted(inputs)), outputs, len(reduction) - 1)


@functools.lru_cache(maxsize=64)
def first_layer(layers: tuple[Ends, ...], embeds: bool = False) -> str:
    """Return the path of the network's first layer.

    Args:
      layers: all kernels of the network, sparse or not.
      embeds: whether the network looks up embeddings, which come before its kernels.

    Returns:
      The path.

    Raises:
      ValueError: if it is ambiguous, with the candidates and the remedy.

    Examples:
      The 7744 inputs are 11 x 11 positions of 64 channels, and the head's 4 outputs
      are not the image's 4 channels:

      >>> first_layer((
      ...     Ends("conv1", (4,), 32, 2), Ends("conv2", (32,), 64, 2),
      ...     Ends("hidden", (7744,), 512, 0), Ends("logits", (512,), 4, 0),
      ... ))
      'conv1'
    """
    by_number = [
        layer
        for layer in layers
        if not any(_is_earlier(other, layer) for other in layers)
    ]
    narrow = [layer for layer in layers if _has_image_channels(layer)]
    narrow = [  # except layers that follow a stem of few features
        layer
        for layer in narrow
        if not any(
            other.outputs in layer.inputs for other in narrow if other is not layer
        )
    ]
    stems = [layer for layer in narrow if _is_stem(layer, layers)]
    open_ends = [
        layer for layer in layers if layer in stems or not _is_explained(layer, layers)
    ]
    found = [layer for layer in by_number if layer in open_ends]
    if len(by_number) == 1:
        found = [] if open_ends and not found else by_number
    elif not found:
        found = [layer for layer in by_number if layer in narrow]
    elif len(found) == 1 and embeds and found[0] not in stems:
        found = []  # this layer may take more inputs than the embeddings
    if len(found) == 1:
        # Parallel towers each have a first layer.
        beside = [
            layer
            for layer in open_ends
            if layer is not found[0]
            and found[0] in open_ends
            and layer.inputs == found[0].inputs
        ]
        found += beside
    if len(found) != 1:
        paths = [layer.path for layer in found or open_ends or by_number]
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        raise ValueError(
            "distribution 'uniform' keeps the first layer dense, but names and shapes "
            "do not show which layer is first; it may be "
            f"{', '.join(paths[:_SHOWN])}{more}: name it with first= (a path or glob), "
            "or pass first=None to make all layers sparse"
        )
    return found[0].path


def _has_image_channels(layer: Ends) -> bool:
    return layer.window > 1 and min(layer.inputs) <= _MOST_CHANNELS


def _is_stem(layer: Ends, layers: Sequence[Ends]) -> bool:
    """Tell whether a layer convolves an image, not groups of few channels."""
    others = [other for other in layers if other is not layer and other.outputs > 1]
    # Groups of three channels are unheard of.
    return layer.inputs == (3,) or all(
        other.outputs != layer.outputs for other in others
    )


def _is_explained(layer: Ends, layers: Sequence[Ends]) -> bool:
    """Tell whether a layer's inputs may be the outputs of other layers."""
    others = [other for other in layers if other is not layer]
    outputs = [other.outputs for other in others]
    if any(n in outputs for n in layer.inputs):
        return True
    if any(_may_feed(other, layer, n) for n in layer.inputs for other in others):
        return True
    return _is_sum(layer.inputs, outputs)


def _may_feed(source: Ends, layer: Ends, inputs: int) -> bool:
    """Tell whether a layer may take another's outputs in a different form."""
    is_flattened = source.window > 0 and layer.window < 2 and source.outputs > 1
    if is_flattened and inputs % source.outputs == 0:
        return True
    # A vector reshaped to an image, as in generators.
    if layer.window and not source.window and source.outputs % inputs == 0:
        return True
    # A gated unit: half of the features gate the others, within a residual block.
    is_gated = layer.outputs in source.inputs and source.outputs not in source.inputs
    if is_gated and source.outputs == 2 * inputs:
        return True
    is_grouped = layer.window and source.window and source.outputs == layer.outputs
    return bool(is_grouped) and layer.outputs % inputs == 0


def _is_sum(wanted: Sequence[int], sizes: Sequence[int]) -> bool:
    """Tell whether a number is a sum of some of the sizes: a concatenation."""
    limit = (1 << (max(wanted) + 1)) - 1
    sums = 1
    for size in sizes:
        sums |= (sums << size) & limit
    return any(sums >> n & 1 for n in wanted)


_TOKENS = re.compile(r"\d+(?:x\d+)+|\d+|\D+")


def _is_earlier(one: Ends, other: Ends) -> bool:
    """Tell whether numbers in the paths put one layer before the other."""
    for a, b in zip(one.path.split("/"), other.path.split("/"), strict=False):
        if a == b:
            continue
        if re.fullmatch(rf"{re.escape(a)}_\d+", b):
            return True  # Haiku: linear, linear_1
        for x, y in zip(_tokens(a), _tokens(b), strict=False):
            if x == y:
                continue
            if not (x.isdigit() and y.isdigit()):
                return False
            is_width = (int(x), int(y)) == (one.outputs, other.outputs)
            return int(x) < int(y) and not is_width
        return False
    return False


@functools.lru_cache(maxsize=4096)
def _tokens(part: str) -> tuple[str, ...]:
    return tuple(_TOKENS.findall(part))


def biases_by_module(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaf named ``bias`` or ``b`` of each module, by module path."""
    found = {}
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        if name.lower() in ("bias", "b"):
            found[module] = leaf
    return found
