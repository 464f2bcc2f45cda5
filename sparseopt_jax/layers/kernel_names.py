"""The axes of a kernel by its name: Flax's convention, without a model."""

import math

# Names of attention modules without uninformative words. Fused projections share a
# kernel, with an axis, or a part of one, for each.
_PROJECTIONS = {
    *("query", "key", "value", "queries", "keys", "values", "q", "k", "v"),
    *("wq", "wk", "wv", "qkv", "kv", "wqkv", "wkv", "query_key_value", "key_value"),
}
_OUTPUTS = {"out", "output", "o", "wo"}
_SAYS_NOTHING = {
    *("proj", "projection", "dense", "linear", "general", "layer", "to", "in"),
    *("attn", "attention", "self", "cross", "multihead", "mha", "w"),
}
# Modules named after their class are identified by sizes: features = heads * head_dim.
_UNNAMED = {"densegeneral", "lineargeneral"}
# Window sizes of convolutions, which could be mistaken for a number of features.
_WINDOWS = (1, 3, 5, 7)


def input_axes(path: str, shape: tuple[int, ...]) -> int:
    """Count the leading axes that are a neuron's inputs, by Flax's convention.

    In ``Dense`` and ``Conv``, neurons lie along the last axis. In attention
    projections, ``DenseGeneral`` modules named ``query``, ``key``, ``value``, ``qkv``
    or similar, they lie along all but the first: ``(features, heads, head_dim)``, or
    ``(features, 3, heads, head_dim)`` for all three in one. The same holds for modules
    named after their class, if heads and head_dim have as many entries as features.

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
    """Tell whether a kernel has the name and shape of an attention projection.

    Args:
      path: the leaf's canonical path.
      shape: its shape.

    Returns:
      False for two axes, for convolutions named ``key`` or similar, and for stacks
      ``(layers, features, heads, head_dim)``, which only a model can distinguish from
      projections.
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
    """Tell whether name and shape are those of ``(heads, head_dim, features)``."""
    return _stem(path) in _OUTPUTS and len(shape) == 3


def _stem(path: str) -> str:
    """Return a module's name without uninformative words; empty for other leaves."""
    *parents, name = path.lower().split("/")
    if name != "kernel" or not parents:
        return ""
    words = [word for word in parents[-1].split("_") if not word.isdigit()]
    return "_".join(word for word in words if word not in _SAYS_NOTHING)
