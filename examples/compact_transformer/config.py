"""The options of the comparison."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

METHODS = ("dense", "unstructured", "blocks")
EVALUATIONS = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a language model dense, and sparse with active blocks only.

    Attributes:
      methods: Methods to train: dense, unstructured, blocks.
      topology: Rule that updates the masks, rigl or set.
      sparsity: Fraction of zeros in every sparse kernel. Embedding, head and norms are
        dense.
      block: Rows and columns of a block; it must divide the width and the hidden
        features.
      every: Steps between updates of the masks, which end after three quarters.
      steps: Number of training steps.
      batch_size: Windows of text per step.
      length: Bytes per window.
      learning_rate: Peak of a linear warm-up and a cosine.
      width: Features of the residual stream.
      hidden: Features of the feed-forward part.
      layers: Number of layers.
      seeds: Number of seeds.
      output: Folder for the results and the log.
      overwrite: Replace a comparison with another configuration in that folder.
    """

    methods: tuple[Literal["dense", "unstructured", "blocks"], ...] = (
        "dense",
        "blocks",
    )
    topology: Literal["rigl", "set"] = "rigl"
    sparsity: float = 0.8
    block: int = 64
    every: int = 50
    steps: int = 300
    batch_size: int = 8
    length: int = 64
    learning_rate: float = 2e-3
    width: int = 512
    hidden: int = 1408
    layers: int = 2
    seeds: int = 1
    output: Path = Path("runs/compact_transformer")
    overwrite: bool = False

    def __post_init__(self) -> None:
        least = {"every": 1, "steps": EVALUATIONS, "batch_size": 1, "length": 1}
        for name, value in (least | {"layers": 1, "seeds": 1}).items():
            if getattr(self, name) < value:
                raise ValueError(
                    f"{name} must be at least {value}, got {getattr(self, name)}"
                )
        if not self.methods:
            raise ValueError(f"methods must name at least one of {', '.join(METHODS)}")

    def record(self) -> dict[str, Any]:
        """Return everything that decides the results, for ``config.json``."""
        fields = dataclasses.asdict(self) | {"methods": list(self.methods)}
        outside = ("output", "overwrite")
        return {name: x for name, x in fields.items() if name not in outside}

    @property
    def evaluated(self) -> list[int]:
        """Return the numbers of steps after which the held-out loss is measured."""
        return [self.steps * (n + 1) // EVALUATIONS for n in range(EVALUATIONS)]
