"""The position of a correction among the links of an optimizer."""

import re
import warnings
from typing import Any

from sparseopt_jax.engine.transformations import checked_transformation
from sparseopt_jax.tracing.transformation_links import Link, read

_CORRECTIONS = frozenset({"scale_by_sparseopt", "scale_by_batch_variance"})

# Transformations whose updates do not depend on the scale of a weight's gradients.
_NORMALISING = frozenset(
    {
        "scale_by_acprop",
        "scale_by_adadelta",
        "scale_by_belief",
        "scale_by_cocob",
        "scale_by_factored_rms",
        "scale_by_rms",
        "scale_by_rss",
        "scale_by_sign",
        "scale_by_sm3",
        "scale_by_stddev",
    }
)

# Words in the names of further such transformations, in optax and other libraries.
_WORDS = re.compile(
    "adabelief|adafactor|adagrad|n?adamw?|radam|adamax|adan|ademamix|adopt|amsgrad|"
    "lion|muon|novograd|prodigy|rmsprop|rprop|shampoo|signum|soap|yogi"
)


def check_placement(inner: Any) -> None:
    """Warn of a correction that a later normalisation cancels.

    Args:
      inner: the transformation inside ``sparsify``.

    Raises:
      TypeError: if ``inner`` is not a transformation.

    Examples:
      >>> import optax
      >>> import sparseopt_jax as so
      >>> check_placement(optax.chain(optax.scale_by_adam(), so.scale_by_sparseopt()))
    """
    _, lost = _follow(read(checked_transformation(inner)), None)
    for correction, normalising in dict.fromkeys(lost):
        warnings.warn(
            f"{correction} before {normalising} has little or no effect, because "
            f"{normalising} normalises by the gradient's own size. Put it after: "
            f"optax.chain({normalising}(...), {correction}(...), ...); "
            "so.sparse_adamw(..., sparseopt=True) uses this order",
            UserWarning,
            stacklevel=3,  # the caller of the caller
        )


_Lost = list[tuple[str, str]]


def _follow(link: Link, correction: str | None) -> tuple[str | None, _Lost]:
    """Follow an update through a link.

    Args:
      link: the link.
      correction: the name of the correction already applied to the update, if any.

    Returns:
      The correction in effect after the link, and pairs of a correction and the
      normalisation that cancels it.
    """
    if link.name in _CORRECTIONS:
        return link.name, []
    if _normalises(link.name):
        return None, [(correction, link.name)] if correction else []
    if not link.parts:
        return correction, []
    lost: _Lost = []
    if not link.in_turn:
        leaving = [_follow(part, correction) for part in link.parts]
        lost = [pair for _, more in leaving for pair in more]
        return next((name for name, _ in leaving if name), None), lost
    for part in link.parts:
        arriving, (correction, more) = correction, _follow(part, correction)
        lost += more
        if correction and not arriving:
            # The update is corrected again: the first was meant for a link in between.
            lost = []
    return correction, lost


def _normalises(name: str) -> bool:
    return name in _NORMALISING or any(map(_WORDS.fullmatch, name.split("_")))
