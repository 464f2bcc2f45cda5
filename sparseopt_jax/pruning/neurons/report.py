"""The report of ``remove_neurons``: sizes of layers, and why other neurons stay."""

import dataclasses
from typing import NamedTuple

from sparseopt_jax.reports import tables


class LayerNeurons(NamedTuple):
    """One kernel before and after neurons are removed.

    Attributes:
      path: the kernel's path.
      shape: its shape before.
      shape_left: its shape now.
      neurons: its number of neurons before; the size of its last axis if it could not
        be followed.
      neurons_left: its number of neurons now: the width to build the layer with.
      flops: its FLOPs before in the given call, two for each multiplication.
      flops_left: the same now.
      why: why its other dead neurons stay, or why none of its neurons can be removed;
        empty if all dead neurons are gone.
    """

    path: str
    shape: tuple[int, ...]
    shape_left: tuple[int, ...]
    neurons: int
    neurons_left: int
    flops: int
    flops_left: int
    why: str


@dataclasses.dataclass(frozen=True, repr=False)
class NeuronReport(tables.Printed):
    """The result of ``remove_neurons``; prints as a table.

    Attributes:
      layers: one entry for each kernel, in the order in which the model uses them.
      parameters: number of parameters before: all floating-point numbers in the
        collection ``"params"``, or in all variables if there is none.
      parameters_left: the same now.
      verified: a sentence about the outputs that were compared; empty if none were.
    """

    layers: tuple[LayerNeurons, ...]
    parameters: int
    parameters_left: int
    verified: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """Kernel path -> the width to build its layer with."""
        return {layer.path: layer.neurons_left for layer in self.layers}

    @property
    def flops(self) -> int:
        """FLOPs of all kernels in the given call, outside loops."""
        return sum(layer.flops for layer in self.layers)

    @property
    def flops_left(self) -> int:
        """The same in the smaller model."""
        return sum(layer.flops_left for layer in self.layers)

    def page(self) -> tables.Page:
        """Return the table and the notes below it."""
        rows = tuple(
            (
                layer.path,
                tables.shape(layer.shape),
                tables.shape(layer.shape_left),
                f"{layer.neurons:,}",
                f"{layer.neurons_left:,}",
                layer.why,
            )
            for layer in self.layers
        )
        notes = (
            f"{self.parameters:,} parameters before, {self.parameters_left:,} left "
            f"({_percent(self.parameters_left, self.parameters)}).",
            f"{self.flops:,} FLOPs of kernels in the given call before, "
            f"{self.flops_left:,} left ({_percent(self.flops_left, self.flops)}).",
            self.verified,
        )
        return tables.Page(
            head=("layer", "shape", "now", "neurons", "left", "why the rest stays"),
            rows=rows,
            words=frozenset({"layer", "shape", "now", "why the rest stays"}),
            styles=tuple(
                "" if layer.shape != layer.shape_left else "dim"
                for layer in self.layers
            ),
            notes=tuple(filter(None, notes)),
        )


def _percent(left: int, before: int) -> str:
    return tables.percent(left / before if before else float("nan"))
