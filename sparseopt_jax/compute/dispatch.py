"""Decides product by product whether it runs by block or dense."""

from collections.abc import Mapping
from typing import Any

import jax

from sparseopt_jax.arguments.checks import described
from sparseopt_jax.compute import crossover, measuring
from sparseopt_jax.compute.kernel_products import BlockShape
from sparseopt_jax.trees import paths

_WAYS = ("auto", "block", "dense")


class Dispatch:
    """Decides whether products run by block.

    Attributes:
      by: one way for all, or one for each glob over paths.
      measure: whether ``"auto"`` times both ways.
    """

    def __init__(self, by: str | Mapping[str, str], measure: bool):
        """Check what was asked for.

        Raises:
          ValueError: for a way that there is not, or if nothing would be measured, or
            processes could come to different programs.
        """
        ways = list(by.values()) if isinstance(by, Mapping) else [by]
        for way in ways:
            if way not in _WAYS:
                raise ValueError(
                    "by must be 'auto', 'block', 'dense', or a mapping from path "
                    f"patterns to these, got {described(way)}"
                )
        if measure and by in ("block", "dense"):
            raise ValueError(
                f"measure=True decides what by='auto' leaves open, got by={by!r}: "
                "leave out one of the two"
            )
        self.by = by
        self.measure = measure

    def check_paths(self, known: list[str]) -> None:
        """Raise ValueError if a pattern of ``by`` names no compact kernel."""
        if isinstance(self.by, Mapping):
            paths.check_patterns(self.by, known, "by")

    def way(self, path: str) -> str:
        """Return what was asked for a kernel."""
        if isinstance(self.by, Mapping):
            return paths.first_match(path, self.by) or "auto"
        return self.by

    def by_block(self, path: str, shape: BlockShape, dtype: Any) -> bool:
        """Return whether a product of this kernel runs by block.

        Raises:
          ValueError: if it were to be measured by several processes, which could come
            to different programs.
        """
        way = self.way(path)
        if way != "auto":
            return way == "block"
        if not self.measure:
            return crossover.pays(shape)
        if jax.process_count() > 1:
            raise ValueError(
                "measure=True could give each of several processes another program: "
                "measure in one, and pass the others what it found as by="
            )
        block, dense = measuring.times(shape, dtype)
        return block < dense
