"""Groups of axes in a model's arrays that run along the same neurons."""

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple


class Along(NamedTuple):
    """An axis that runs along the neurons of a layer.

    Attributes:
      node: the axis of a variable that runs along the same neurons.
      repeats: how many times it runs through them: entry ``r * neurons + j`` belongs to
        neuron ``j``, as after flattening an image.
    """

    node: int
    repeats: int = 1


class Other(enum.Enum):
    """An axis that does not run along neurons."""

    UNIFORM = "all entries along it are the same, or there is only one"
    OPAQUE = "nothing is known about it"


Label = Along | Other
Axes = tuple[Label, ...]
UNIFORM, OPAQUE = Other.UNIFORM, Other.OPAQUE


class NeuronGroups:
    """Groups of the variables' axes that the model aligns with each other.

    A node is an axis of a variable. Joined nodes form a group, and are cut together or
    not at all.

    Attributes:
      sizes: node -> number of entries of the axis.
    """

    def __init__(self):
        self.sizes: list[int] = []
        self._parents: list[Along] = []
        self._reasons: dict[int, str] = {}

    def new(self, size: int) -> Label:
        """Return the label of an axis of a variable."""
        if size == 1:
            return UNIFORM
        label = Along(len(self.sizes))
        self.sizes.append(size)
        self._parents.append(label)
        return label

    def root(self, label: Along) -> Along:
        """Return the node that represents a group, and how often an axis repeats it."""
        node, repeats = label
        while self._parents[node].node != node:
            parent = self._parents[node]
            node, repeats = parent.node, repeats * parent.repeats
        return Along(node, repeats)

    def join(self, one: Along, other: Along) -> None:
        """Join the groups of two aligned axes."""
        fine, coarse = sorted(
            (self.root(one), self.root(other)), key=lambda a: self.sizes[a.node]
        )
        if fine.node == coarse.node:
            return
        times, rest = divmod(self.sizes[coarse.node], self.sizes[fine.node])
        if rest or times * coarse.repeats != fine.repeats:
            self.refuse(one, "regrouped on the way")
            self.refuse(other, "regrouped on the way")
            return
        self._parents[coarse.node] = Along(fine.node, times)
        if coarse.node in self._reasons:
            self.refuse(fine, self._reasons[coarse.node])

    def refuse(self, label: Label, reason: str) -> None:
        """Record the first reason why a group must not be cut."""
        if isinstance(label, Along):
            self._reasons.setdefault(self.root(label).node, reason)

    def reason(self, label: Along) -> str:
        """Return why a group must not be cut; empty if it may be cut."""
        return self._reasons.get(self.root(label).node, "")


def opaque(shape: Sequence[int]) -> Axes:
    """Return the labels of an array about which nothing is known."""
    return tuple(UNIFORM if size == 1 else OPAQUE for size in shape)


def met(groups: NeuronGroups, labels: Sequence[Label]) -> Label:
    """Return the label of an axis along which several arrays are aligned."""
    along = [label for label in labels if isinstance(label, Along)]
    if OPAQUE in labels:
        for label in along:
            groups.refuse(label, "combined with an array that has no such neurons")
        return OPAQUE
    for label in along[1:]:
        groups.join(along[0], label)
    return along[0] if along else UNIFORM


def regrouped(
    groups: NeuronGroups, shape: Sequence[int], axes: Axes, target: Sequence[int]
) -> Axes:
    """Return the labels after a reshape from ``shape`` to ``target``."""
    result = list(opaque(target))
    sources = [axis for axis, size in enumerate(shape) if size != 1]
    targets = [axis for axis, size in enumerate(target) if size != 1]
    if 0 in shape:
        for label in axes:
            groups.refuse(label, "part of an array without entries")
        return tuple(result)
    while sources:
        taken, given = [sources.pop(0)], [targets.pop(0)]
        while (sizes := _sizes(shape, taken, target, given))[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                taken.append(sources.pop(0))
            else:
                given.append(targets.pop(0))
        labels = [axes[axis] for axis in taken]
        if len(taken) == len(given) == 1:
            result[given[0]] = labels[0]
        elif all(label is UNIFORM for label in labels):
            for axis in given:
                result[axis] = UNIFORM
        else:
            result[given[-1]] = _fastest(groups, labels, target[given[-1]])
    return tuple(result)


def _sizes(
    shape: Sequence[int], taken: list[int], target: Sequence[int], given: list[int]
) -> tuple[int, int]:
    return math.prod(shape[a] for a in taken), math.prod(target[a] for a in given)


def _fastest(groups: NeuronGroups, labels: list[Label], size: int) -> Label:
    """Return the label of the last axis that several axes are reshaped to."""
    for label in labels[:-1]:
        groups.refuse(label, "flattened with an axis that varies faster")
    last = labels[-1]
    if not isinstance(last, Along):
        return OPAQUE
    repeats, rest = divmod(size, groups.sizes[last.node])
    if rest or not repeats:
        groups.refuse(last, "split by a reshape, like heads or groups of channels")
        return OPAQUE
    return Along(last.node, repeats)
