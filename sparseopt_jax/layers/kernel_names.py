"""What the name of a kernel says about its axes: Flax's convention, without a model."""

import math

# What modules of attention are called, without the words that say nothing. Fused ones
# are written together with an axis, or a part of one, for each projection.
_PROJECTIONS = {
    *("query", "key", "value", "queries", "keys", "values", "q", "k", "v"),
    *("wq", "wk", "wv", "qkv", "kv", "wqkv", "wkv", "query_key_value", "key_value"),
}
_OUTPUTS = {"out", "output", "o", "wo"}
_SAYS_NOTHING = {
    *("proj", "projection", "dense", "linear", "general", "layer", "to", "in"),
    *("attn", "attention", "self", "cross", "multihead", "mha", "w"),
}
# Where the module has no name of its own, the sizes tell: as many features as heads and
# head_dim have entries.
_UNNAMED = {"densegeneral", "lineargeneral"}
# The sizes of a convolution's window that a number of features could be mistaken for.
_WINDOWS = (1, 3, 5, 7)


def input_axes(path: str, shape: tuple[int, ...]) -> int:
    """How many leading axes of a kernel are a neuron's inputs, by Flax's convention.

    ``Dense`` and ``Conv`` have their neurons along the last axis. The projections of an
    attention, ``DenseGeneral`` modules called ``query``, ``key``, ``value``, ``qkv`` or
    alike, have them along all but the first: ``(features, heads, head_dim)``, or
    ``(features, 3, heads, head_dim)`` for all three in one; so have those that are
    called after their class, if heads and head_dim have as many entries as features.

    Args:
      path: the leaf's canonical path.
      shape: its shape, of at least two axes.

    Returns:
      The number of axes.

    Examples:
      >>> input_axes("Dense_0/kernel", (64, 32)), input_axes("key/kernel", (64, 4, 16))
      (1, 1)
      >>> input_axes("out/kernel", (4, 16, 64)), input_axes("key/kernel", (3, 3, 8, 8))
      (2, 3)
    """
    return 1 if is_projection(path, shape) else len(shape) - 1


def is_projection(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a kernel has the name and the shape of an attention's projection.

    Args:
      path: the leaf's canonical path.
      shape: its shape.

    Returns:
      False for two axes, for convolutions that are called ``key`` or alike, and for
      stacks ``(layers, features, heads, head_dim)``, which only a model can tell from
      these.
    """
    stem = _stem(path)
    if len(shape) not in (3, 4):
        return False
    if stem in _UNNAMED:
        heads, head_dim = shape[-2:]
        is_fused = len(shape) == 3 or shape[1] in (2, 3)
        return is_fused and shape[0] == heads * head_dim > max(heads, head_dim)
    if stem not in _PROJECTIONS:
        return False
    if shape[0] in _WINDOWS and shape[0] < math.prod(shape[1:]):
        return False
    fused = 3 if "q" in stem else 2
    is_fused = ("kv" in stem or "key_value" in stem) and shape[1] == fused
    return len(shape) == 3 or is_fused


def is_attention_output(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a kernel is called and shaped as ``(heads, head_dim, features)`` are."""
    return _stem(path) in _OUTPUTS and len(shape) == 3


def _stem(path: str) -> str:
    """The name of a kernel's module without what says nothing, empty for others."""
    *parents, name = path.lower().split("/")
    if name != "kernel" or not parents:
        return ""
    words = [word for word in parents[-1].split("_") if not word.isdigit()]
    return "_".join(word for word in words if word not in _SAYS_NOTHING)
