"""Descriptions of a kernel's axes, by a user or from a model."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sparseopt_jax.arguments.checks import integer


@dataclasses.dataclass(frozen=True)
class NeuronDims:
    """The axes of a kernel that a neuron sums over, and those that index neurons.

    Axes named in neither are a batch: a stack of separate layers, as in ``nn.scan``,
    vmapped ensembles and experts.

    Attributes:
      reduction_axis: axis or axes of a neuron's incoming weights.
      output_axis: axis or axes along which the neurons lie.

    Raises:
      ValueError: if an axis is named twice.

    Examples:
      An attention's query kernel of shape ``(features, heads, head_dim)``, and a dense
      kernel stacked over layers by ``nn.scan``, ``(layers, fan_in, out)``:

      >>> NeuronDims(reduction_axis=0, output_axis=(1, 2))
      NeuronDims(reduction_axis=(0,), output_axis=(1, 2))
      >>> NeuronDims(1, 2)
      NeuronDims(reduction_axis=(1,), output_axis=(2,))
    """

    reduction_axis: int | tuple[int, ...] = 0
    output_axis: int | tuple[int, ...] = 1

    def __post_init__(self) -> None:
        for name in ("reduction_axis", "output_axis"):
            axes = getattr(self, name)
            axes = tuple(axes) if isinstance(axes, tuple | list) else (axes,)
            if not axes:
                raise ValueError(f"{name} must name at least one axis, got {axes}")
            axes = tuple(integer(name, axis) for axis in axes)
            object.__setattr__(self, name, axes)
        both = (*self.reduction_axis, *self.output_axis)  # pyright: ignore
        if len(set(both)) != len(both):
            raise ValueError(f"{self} names an axis twice")


class Axes(NamedTuple):
    """The non-negative axes of one kernel: stack, a neuron's inputs, the neurons."""

    batch: tuple[int, ...]
    reduction: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def layer(self) -> tuple[int, ...]:
        """The axes of a single layer of the stack."""
        return tuple(sorted((*self.reduction, *self.output)))


class InferredDims(Mapping[str, NeuronDims]):
    """Kernel path -> its axes, which ``infer_dims`` reads off a model, for ``dims=``.

    Paths are literal, not globs. Instances are equal, with equal hashes, if the axes of
    all kernels are equal.

    Attributes:
      undecided: kernel path -> why its axes could not be read off the model.
    """

    def __init__(self, kernels: Mapping[str, Axes], undecided: Mapping[str, str]):
        self._kernels = dict(kernels)
        self.undecided = dict(undecided)

    def axes(self, path: str) -> Axes | None:
        """Return the axes of a kernel; None if the model did not decide them.

        Args:
          path: the kernel's path, which may start with ``"params/"`` in a tree of all
            variables.
        """
        return self._kernels.get(path) or self._kernels.get(
            path.removeprefix("params/")
        )

    def knows(self, path: str) -> bool:
        """Tell whether the model has this kernel, decided or not."""
        return bool(
            self.axes(path)
            or path in self.undecided
            or path.removeprefix("params/") in self.undecided
        )

    def __getitem__(self, path: str) -> NeuronDims:
        _, reduction, output = self._kernels[path]
        return NeuronDims(reduction, output)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, InferredDims):
            return NotImplemented
        return self._kernels == other._kernels

    def __hash__(self) -> int:
        return hash(frozenset(self._kernels.items()))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{path!r}: {axes.reduction} -> {axes.output}"
            + (f" in stacks along {axes.batch}" if axes.batch else "")
            for path, axes in self._kernels.items()
        )
        return f"InferredDims({{{shown}}}, undecided={self.undecided!r})"
