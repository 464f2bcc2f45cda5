"""Decisions on which neurons to remove, and how the remaining variables change.

A neuron is removed if no layer that reads it needs it: because its weights there are
zero, or because it emits a constant that the layer's bias can absorb.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sparseopt_jax.pruning.neurons.groups import Along, Label
from sparseopt_jax.pruning.neurons.products import Absorber, Product
from sparseopt_jax.pruning.neurons.reader import NeuronReader

Array = np.ndarray


class Reading(NamedTuple):
    """How a product uses the neurons that it reads, each with one or several rows.

    Attributes:
      unread: (rows,), whether all weights of a row are zero.
      constant: (rows,), whether a row multiplies the same value for every input.
      is_zero: (rows,), whether that constant is 0.
      obstacle: why its bias cannot absorb a constant other than 0; empty if it can.
    """

    unread: Array
    constant: Array
    is_zero: Array
    obstacle: str

    def is_dead(self, neurons: int) -> Array:
        """Return which neurons contribute at most a constant to the product."""
        return _of_neurons(self.unread | self.constant, neurons)

    def can_go(self, neurons: int) -> Array:
        """Return which neurons the product does not need."""
        constant = self.constant & (self.is_zero | (not self.obstacle))
        return _of_neurons(self.unread | constant, neurons)


def _of_neurons(rows: Array, neurons: int) -> Array:
    """Return whether all rows of each neuron are True."""
    return np.all(rows.reshape(-1, neurons), axis=0)


@dataclasses.dataclass
class Decision:
    """The decision for the neurons of each group.

    Attributes:
      stays: group -> which neurons stay.
      why: group -> why apparently dead neurons stay, or why none can be removed.
      shifts: variable -> the float64 array to add to it, with as many entries.
    """

    stays: dict[int, Array] = dataclasses.field(default_factory=dict)
    why: dict[int, str] = dataclasses.field(default_factory=dict)
    shifts: dict[int, Array] = dataclasses.field(default_factory=dict)


class Decider:
    """A decider that visits all groups, from the last layer to the first."""

    def __init__(self, reader: NeuronReader, names: Mapping[int, str], least: int):
        self.reader, self.names, self.least = reader, names, least
        self.groups = reader.groups
        self.decision = Decision()
        self.writers: dict[int, list[int]] = {}
        self.readers: dict[int, list[Product]] = {}
        self._refuse_shared()
        for number, product in enumerate(reader.products):
            for label in product.neurons:
                self.writers.setdefault(self.groups.root(label).node, []).append(number)
            if product.reads is not None:
                label = product.axes[product.reads]
                assert isinstance(label, Along)
                node = self.groups.root(label).node
                self.readers.setdefault(node, []).append(product)

    def decide(self) -> Decision:
        """Decide on every group."""
        # Later layers first, because weights to removed neurons do not count.
        for node in sorted(self.writers, key=lambda n: -max(self.writers[n])):
            reason = self.groups.reason(Along(node))
            if not reason and node not in self.readers:
                reason = "no layer reads them"
            if reason:
                self.decision.why[node] = reason
            else:
                self._decide(node)
        return self.decision

    def name(self, product: Product) -> str:
        """Return the paths of the variables of a product's weights."""
        return " and ".join(self.names[leaf] for leaf in sorted(product.leaves))

    def stays(self, label: Label, size: int) -> Array:
        """Return which entries of an axis stay."""
        if isinstance(label, Along):
            root = self.groups.root(label)
            if root.node in self.decision.stays:
                return np.tile(self.decision.stays[root.node], root.repeats)
        return np.ones(size, bool)

    def stays_of(self, product: Product, axis: int) -> int:
        """Return how many entries of an axis of the weights of a product stay."""
        return int(self.stays(product.axes[axis], product.weights.shape[axis]).sum())

    def share(self, label: Label) -> float:
        """Return the fraction of the entries of an axis that stays."""
        if not isinstance(label, Along):
            return 1.0
        return float(self.stays(label, self.groups.sizes[label.node]).mean())

    def why(self, product: Product) -> str:
        """Return why neurons of a product stay; empty if all dead ones are removed."""
        nodes = [self.groups.root(label).node for label in product.neurons]
        return next(filter(None, (self.decision.why.get(node) for node in nodes)), "")

    def why_not_followed(self, place: int) -> str:
        """Return why a variable cannot be followed as a kernel."""
        labels = [a for a in self.reader.axes.get(place, ()) if isinstance(a, Along)]
        reasons = filter(None, map(self.groups.reason, labels))
        return next(reasons, "not used by apply_fn")

    def _refuse_shared(self) -> None:
        products = self.reader.products
        for leaf, axes in self.reader.axes.items():
            count = sum(leaf in product.leaves for product in products)
            if count > 1:
                for label in axes:
                    self.groups.refuse(
                        label, f"{self.names[leaf]} is used {count} times"
                    )

    def _decide(self, node: int) -> None:
        products, neurons = self.readers[node], self.groups.sizes[node]
        readings = [self._reading(product) for product in products]
        can_go = np.all([reading.can_go(neurons) for reading in readings], axis=0)
        is_dead = np.all([reading.is_dead(neurons) for reading in readings], axis=0)
        stays = np.logical_not(can_go)
        why = []
        if not is_dead.any():
            why.append("none is dead")
        if (missing := self.least - int(stays.sum())) > 0:
            stays[np.flatnonzero(can_go)[:missing]] = True
            why.append(f"min_neurons={self.least}: a layer may not be empty")
        if (kept := is_dead & ~can_go).any():
            obstacles = dict.fromkeys(r.obstacle for r in readings if r.obstacle)
            emit = f"{kept.sum()} of them emit constants other than 0, but "
            why.append(emit + "; ".join(obstacles))
        self.decision.why[node] = "; ".join(why)
        if stays.all():
            return
        self.decision.stays[node] = stays
        for product, reading in zip(products, readings, strict=True):
            gone = np.tile(~stays, reading.unread.size // neurons)
            self._fold(product, gone & ~reading.unread & ~reading.is_zero)

    def _reading(self, product: Product) -> Reading:
        reads, inputs = product.reads, product.inputs
        assert reads is not None and inputs is not None
        weights = np.asarray(product.weights) != 0
        for axis in product.kept:
            stays = self.stays(product.axes[axis], weights.shape[axis])
            weights = np.compress(stays, weights, axis)
        others = tuple(axis for axis in range(weights.ndim) if axis != reads)
        return Reading(
            unread=np.logical_not(np.any(weights, axis=others)),
            constant=inputs.known,
            is_zero=inputs.known & (inputs.value == 0),
            obstacle=self._obstacle(product),
        )

    def _obstacle(self, product: Product) -> str:
        name = self.name(product)
        if product.is_padded:
            return f"{name} pads with zeros, and they would be missing at its border"
        if self._absorber(product) is None:
            return f"no bias of its own follows {name}"
        return ""

    def _absorber(self, product: Product) -> Absorber | None:
        """Return the variable that can absorb constants, or None."""
        if product.ends or len(product.absorbers) != 1:
            return None
        (absorber,) = product.absorbers
        added = [a for a in self.reader.axes[absorber.leaf] if isinstance(a, Along)]
        kept = [product.axes[a] for a in product.kept if product.weights.shape[a] > 1]
        if len(added) != len(kept) or self.reader.uses[absorber.leaf] != 1:
            return None
        is_same = all(
            isinstance(b, Along) and self.groups.root(a) == self.groups.root(b)
            for a, b in zip(added, kept, strict=True)
        )
        return absorber if is_same else None

    def _fold(self, product: Product, gone: Array) -> None:
        """Add to the bias what the removed rows contribute to the product."""
        if not gone.any():
            return
        absorber, reads, inputs = self._absorber(product), product.reads, product.inputs
        assert absorber is not None and reads is not None and inputs is not None
        constants = np.where(gone, inputs.value, 0.0)
        weights = np.asarray(product.weights).astype(np.float64)
        shift = np.tensordot(constants, weights, axes=([0], [reads]))
        # Sum over the window: without padding it sees the same constants everywhere.
        left = [axis for axis in range(weights.ndim) if axis != reads]
        windows = tuple(i for i, axis in enumerate(left) if axis not in product.kept)
        shift = shift.sum(axis=windows) * absorber.sign
        self.decision.shifts[absorber.leaf] = shift
