"""The decision, for each product, whether it runs by block or dense."""

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
      by: one way for all kernels, or a mapping from globs over paths to ways.
      measure: whether ``"auto"`` times both ways.
    """

    def __init__(self, by: str | Mapping[str, str], measure: bool):
        """Check and store the settings.

        Raises:
          ValueError: for an unknown way, or if ``measure`` would have no effect.
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
                f"measure=True applies only to by='auto', got by={by!r}: omit one of "
                "the two"
            )
        self.by = by
        self.measure = measure

    def check_paths(self, known: list[str]) -> None:
        """Raise a ValueError if a pattern of ``by`` matches no compact kernel."""
        if isinstance(self.by, Mapping):
            paths.check_patterns(self.by, known, "by")

    def way(self, path: str) -> str:
        """Return the way requested for a kernel."""
        if isinstance(self.by, Mapping):
            return paths.first_match(path, self.by) or "auto"
        return self.by

    def by_block(self, path: str, shape: BlockShape, dtype: Any) -> bool:
        """Return whether a product of this kernel runs by block.

        Raises:
          ValueError: if several processes would measure it, because they could then
            compile different programs.
        """
        way = self.way(path)
        if way != "auto":
            return way == "block"
        if not self.measure:
            return crossover.pays(shape)
        if jax.process_count() > 1:
            raise ValueError(
                "with measure=True several processes could compile different programs: "
                "measure in one process, and pass its decisions to the others as by="
            )
        block, dense = measuring.times(shape, dtype)
        return block < dense
