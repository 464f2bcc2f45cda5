"""Kinds of leaves that are not kernels, found by name, neighbours and shape.

Kernels multiply an input. Names identify biases, scales, embeddings, tokens, position
tables, parameters of state-space layers and LoRA factors. Neighbours, the leaves of the
same module, correct them: a ``b`` beside a ``w`` is a bias, a ``weight`` with the shape
of its bias is a normalisation's scale, and a ``weight`` beside a bias of fewer axes is
a kernel, whatever its module's name. A leaf with a single axis longer than 1 is a
vector, unless it is named like a kernel: ``(512, 1)`` at ``value/kernel`` is a kernel.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

BIAS, SCALE, EMBEDDING = "bias", "scale", "embedding"
TOKEN, POSITION, LORA = "token", "position table", "LoRA factor"
STATE_SPACE, VECTOR = "state-space parameter", "a single axis longer than 1"
# Kinds that multiply no input; embeddings may be the head as well.
NOT_MULTIPLIED = frozenset({BIAS, SCALE, TOKEN, POSITION, STATE_SPACE, VECTOR})

_END = r"s?(_?\d+)?$"
_BIAS = re.compile(rf"(^|_)(bias(es)?|offset|beta|shift){_END}|^bias_|^b_[ih]h?$")
_SCALE = re.compile(rf"(^|_)(scale|gamma|gain){_END}")
_TOKEN = re.compile(rf"(^|_)(cls|tok|token|probe|register|codebook|prompt){_END}")
_POSITION = re.compile(
    r"(^|_)(pos|positions?|positional)(?!_wise)(_|$)|^rel_?pos|^wpe$"
)
_POSITIONS = re.compile(r"pos(ition(al)?)?_?(enc\w*|tables?)$")
_EMBEDDING = re.compile("embed|wte|wpe|cls_token|pos_table")
_LORA = re.compile(r"(^|_)lora_?[ab12]?(_|$)")
_LORA_MODULE = re.compile(r"(^|_)lora$|(^|_)lora_?[ab12](_|$)")
_STATE_SPACE = re.compile(
    r"^(a_log|log_a|log_step|log_dt|dt_log|inv_dt|log_lambda|lambda_\w+|nu_log|"
    r"theta_log|gamma_log|log_a_\w+|a_(re|im)\w*|time_(decay|first|mix|maa|faaaa)\w*)$"
)
_NORM = re.compile(
    r"(^|_)(\w*norm|normali[sz]ation|ln|bn|gn|rms)s?(_?\d+)?"
    r"(_([a-z]|attn|attention|ffn|mlp|final|in|out|pre|post))?$"
)
_KERNEL = re.compile(r"(kernel|weight|w[a-z]?)s?(_\w+|\d+)?$|\w+_(kernel|weight|w)\d*$")

# Equinox modules, whose class identifies their leaves, whatever their names.
_EMBEDDINGS = {"Embedding"}
_NORMS = {"LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm"}
_LAYERS = {"Linear", "Conv", "ConvTranspose"}


def kind_by_name(path: str) -> str:
    """Return the kind of a leaf by its name: bias, scale, ...; empty for kernels.

    >>> kind_by_name("layers/Dense_0/bias"), kind_by_name("layers/Dense_0/kernel")
    ('bias', '')
    """
    *parents, name = path.lower().split("/")
    parent = next((part for part in reversed(parents) if not part.isdigit()), "")
    if _LORA.search(name) or any(map(_LORA_MODULE.search, parents[-3:])):
        return LORA
    if name == "kernel":
        return ""
    if _STATE_SPACE.search(name):
        return STATE_SPACE
    if _BIAS.search(name) or (name == "b" and parent.startswith("bias")):
        return BIAS
    if _SCALE.search(name):
        return SCALE
    if _EMBEDDING.search(name):
        return EMBEDDING
    if _TOKEN.search(name) or name == "latents":
        return TOKEN
    if _POSITION.search(name) or _POSITIONS.search(name):
        return POSITION
    if _EMBEDDING.search(parent):
        return EMBEDDING
    if _POSITIONS.search(parent):
        return POSITION
    return SCALE if _NORM.search(parent) else ""


def is_lookup(path: str, leaf: Any) -> bool:
    """Tell whether an embedding is of tokens, a network's input, not of positions."""
    return "pos" not in path.lower() and np.shape(leaf)[:1] != (1,)


def leaf_kinds(
    leaves: Mapping[str, Any], modules: Mapping[str, type] | None = None
) -> dict[str, str]:
    """Return the kind of each leaf that is not a kernel.

    Args:
      leaves: anything with a ``shape``, by canonical paths: all leaves of a tree, so
        that each has its neighbours.
      modules: the class of the node that holds a leaf, by path, if known.

    Returns:
      A word or two by path, empty for kernels. Leaves of fewer than two axes, which
      cannot be kernels, are identified by name only.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)
      >>> leaf_kinds({"linear/w": shape(6, 16, 8), "linear/b": shape(6, 8)})
      {'linear/w': '', 'linear/b': 'bias'}
      >>> leaf_kinds({"cls": shape(1, 1, 8), "gate": shape(1, 8), "Dense_0/kernel":
      ...     shape(8, 1)})
      {'cls': 'token', 'gate': 'a single axis longer than 1', 'Dense_0/kernel': ''}
    """
    neighbours: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        neighbours.setdefault(module, {})[name.lower()] = leaf
    kinds = {}
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        near = neighbours[module]
        kind = _kind_by_class(name, (modules or {}).get(path))
        if kind is None:
            kind = _kind_by_neighbours(path, name.lower(), leaf, near)
        if not kind and not _KERNEL.match(name.lower()):
            shape = np.shape(leaf)
            kind = VECTOR if len(shape) > 1 and sum(n > 1 for n in shape) < 2 else ""
        kinds[path] = kind
    return kinds


def _kind_by_class(name: str, module: type | None) -> str | None:
    bases = {base.__name__ for base in module.__mro__} if module else set()
    if name == "bias" and bases & (_LAYERS | _NORMS):
        return BIAS
    if name == "weight" and bases & (_EMBEDDINGS | _NORMS | _LAYERS):
        return EMBEDDING if bases & _EMBEDDINGS else SCALE if bases & _NORMS else ""
    return None


def _kind_by_neighbours(
    path: str, name: str, leaf: Any, near: Mapping[str, Any]
) -> str:
    kind, shape = kind_by_name(path), np.shape(leaf)
    if name == "kernel":
        return kind
    biases = [near[partner] for partner in _partners(name, "w") if partner in near]
    if biases and kind in ("", EMBEDDING, SCALE, POSITION):
        if any(np.shape(bias) == shape for bias in biases):
            return SCALE
        if any(_is_bias_of(np.shape(bias), shape) for bias in biases):
            return ""
    weights = [near[partner] for partner in _partners(name, "b") if partner in near]
    if not kind and any(_is_bias_of(shape, np.shape(weight)) for weight in weights):
        return BIAS
    if not kind and name == "d" and any(map(_STATE_SPACE.match, near)):
        return STATE_SPACE
    return kind


def _is_bias_of(bias: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Tell whether a bias may be added to a weight's product, or to what it scales."""
    sizes = [n for n in bias if n > 1]
    fits = all(sizes.count(n) <= weight.count(n) for n in sizes)
    return bias == weight or (fits and len(sizes) < len(weight))


_NAMES = {"w": ("w", "weight", "kernel"), "b": ("b", "bias")}


def _partners(name: str, role: str) -> list[str]:
    """Return the names of the biases of a weight with this name, or vice versa.

    ``b`` and ``w``, ``b1`` and ``w1``, ``bi`` and ``wi``, ``b_q`` and ``weight_q``,
    ``down_b`` and ``down_w``.
    """
    words = name.split("_")
    others = _NAMES["b" if role == "w" else "w"]
    found = []
    for place, word in enumerate(words):
        for known in _NAMES[role]:
            ending = word.removeprefix(known)
            short = len(ending) < 2 or ending.isdigit()
            if not word.startswith(known) or (len(known) == 1 and not short):
                continue
            for other in others:
                found.append(
                    "_".join([*words[:place], other + ending, *words[place + 1 :]])
                )
    return found
