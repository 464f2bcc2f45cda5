"""What is wrong with a sparse network as it is, said with the remedy."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparseopt_jax.reports.summary import LayerSummary

# From this fraction of dead neurons on a layer is told.
DEAD_FRACTION = 0.2

# As many leaves are named; what is wrong in a hundred of them has one cause.
_NAMED = 8


def state_warnings(layers: Iterable["LayerSummary"]) -> tuple[str, ...]:
    """Returns a sentence for each thing that is wrong, none where nothing is.

    Args:
      layers: the sparse leaves.

    Returns:
      The warnings: of layers without active weights, of dead neurons, of inactive
      weights that are not zero.
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
    # Of a leaf that has nothing left the first sentence says enough.
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
        remedies.append("min_fan_in=2 in the topology keeps every neuron alive")
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
