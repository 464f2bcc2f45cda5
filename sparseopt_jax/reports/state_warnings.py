"""Warnings about the current state of a sparse network, with remedies."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparseopt_jax.reports.summary import LayerSummary

# The fraction of dead neurons from which a layer is reported.
DEAD_FRACTION = 0.2

# The number of leaves to name: what is wrong in a hundred of them has one cause.
_NAMED = 8


def state_warnings(layers: Iterable["LayerSummary"]) -> tuple[str, ...]:
    """Return a sentence for each problem.

    Args:
      layers: the sparse leaves.

    Returns:
      Warnings of layers without active weights, of dead neurons, and of inactive
      weights that are not zero; empty if there are none.
    """
    layers = tuple(layers)
    found = (_collapsed(layers), _dead(layers), _nonzero(layers))
    return tuple(text for text in found if text)


def _collapsed(layers: tuple["LayerSummary", ...]) -> str:
    found = [
        f"{layer.path} ({layer.collapsed} of {layer.copies} layers)"
        if layer.copies > 1
        else layer.path
        for layer in layers
        if layer.collapsed
    ]
    return f"no active weight is left in {_listed(found)}" if found else ""


def _dead(layers: tuple["LayerSummary", ...]) -> str:
    # For a leaf without active weights, the first sentence says enough.
    found = [
        layer
        for layer in layers
        if layer.active and layer.dead and layer.dead >= DEAD_FRACTION * layer.neurons
    ]
    if not found:
        return ""
    places = _listed(f"{x.path} ({x.dead} of {x.neurons})" for x in found)
    remedies = []
    if not all(layer.stays_dense for layer in found):
        remedies.append(
            "min_fan_in=2 in the topology keeps every neuron alive (with Block, use "
            "smaller blocks or a lower sparsity)"
        )
    if any(layer.stays_dense for layer in found):
        remedies.append("a lower sparsity, or another distribution, leaves more alive")
    if any(layer.is_even for layer in found):
        remedies.append(
            "Channel() and srigl remove neurons on purpose, fewer with a lower "
            "sparsity or gamma_sal"
        )
    return f"dead neurons, without active inputs, in {places}: {'; '.join(remedies)}"


def _nonzero(layers: tuple["LayerSummary", ...]) -> str:
    found = [layer for layer in layers if layer.inactive_nonzero]
    if not found:
        return ""
    total = sum(layer.inactive_nonzero for layer in found)
    places = _listed(
        f"{layer.path} ({layer.inactive_nonzero:,} of {layer.inactive:,})"
        for layer in found
    )
    weights = (
        "1 inactive weight is" if total == 1 else f"{total:,} inactive weights are"
    )
    return (
        f"{weights} not zero, in {places}: call so.apply_masks(params, opt_state) "
        "after tx.init and after loading weights or masks, and let nothing scale, "
        "decay or average updates or weights after sparsify"
    )


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    more = len(items) - _NAMED
    shown = ", ".join(items[:_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
