"""The options of the comparison on scanned digits, and the arms it compares."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

import sparseopt_jax as so

METHODS = {"dense": "dense", "static": "static", "set": "SET", "rigl": "RigL"}
CORRECTIONS = {"none": "", "fan_in": "SparseOpt", "batch_variance": "BN variance"}
PEAK_LEARNING_RATE = {"sgd": 0.1, "adamw": 0.01}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
TRAIN_IMAGES, TEST_IMAGES = 1197, 600


class Arm(NamedTuple):
    """One arm of the comparison.

    Attributes:
      method: a key of ``METHODS``.
      correction: a key of ``CORRECTIONS``.
    """

    method: str
    correction: str = "none"

    @property
    def label(self) -> str:
        """Return the arm's name in tables and figures."""
        parts = (METHODS[self.method], CORRECTIONS[self.correction])
        return " + ".join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a small ResNet on scanned digits, dense and sparse, and compare them.

    Attributes:
      methods: Methods to train, in this order.
      correction: Train every sparse method a second time, with its gradient corrected
        per neuron by fan-in (SparseOpt) or by the variance that Batch Normalization
        measures. auto does so for RigL only, by fan-in.
      sparsity: Fraction of zeros over all kernels, in [0, 1).
      distribution: How the active weights are distributed over the layers.
      optimizer: The base optimizer of every method.
      learning_rate: Peak of the schedule, a linear warm-up and a cosine. By default 0.1
        for sgd and 0.01 for adamw.
      seeds: Number of seeds: 0, 1, and so on.
      epochs: Passes over the training images.
      batch_size: Images per step.
      width: Channels of the network's first layer.
      output: Folder for the results, the log and the prepared images.
      overwrite: Replace a comparison with another configuration in that folder.
    """

    methods: tuple[Literal["dense", "static", "set", "rigl"], ...] = (
        *("dense", "static", "set", "rigl"),
    )
    correction: Literal["auto", "none", "fan_in", "batch_variance"] = "auto"
    sparsity: float = 0.95
    distribution: Literal["erdos_renyi_kernel", "erdos_renyi", "uniform"] = (
        "erdos_renyi_kernel"
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    seeds: int = 5
    epochs: int = 20
    batch_size: int = 64
    width: int = 16
    output: Path = Path("runs/digits")
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_choices("methods", self.methods, METHODS)
        _check_choices("correction", [self.correction], ["auto", *CORRECTIONS])
        _check_choices("optimizer", [self.optimizer], PEAK_LEARNING_RATE)
        if not self.methods:
            raise ValueError(f"methods must name at least one of {', '.join(METHODS)}")
        for name in ("seeds", "epochs", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.batch_size > TRAIN_IMAGES:
            raise ValueError(
                f"batch_size must be at most {TRAIN_IMAGES}, the number of training "
                f"images, got {self.batch_size}"
            )
        if not 0.0 < self.peak < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        so.static(self.sparsity, distribution=self.distribution)  # raises

    @property
    def peak(self) -> float:
        """Return the learning rate after warm-up."""
        if self.learning_rate is None:
            return PEAK_LEARNING_RATE[self.optimizer]
        return self.learning_rate

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of full batches in the training images."""
        return TRAIN_IMAGES // self.batch_size

    @property
    def arms(self) -> list[Arm]:
        """Return the arms of the comparison, in order."""
        arms = []
        for method in dict.fromkeys(self.methods):
            arms.append(Arm(method))
            if self.correction == "auto":
                corrected = {"rigl": "fan_in"}.get(method)
            else:
                corrected = None if method == "dense" else self.correction
            if corrected not in (None, "none"):
                arms.append(Arm(method, corrected))
        return arms

    def record(self) -> dict[str, Any]:
        """Return everything that decides the results, for ``config.json``."""
        fields = dataclasses.asdict(self)
        fields |= {"methods": list(self.methods), "learning_rate": self.peak}
        return {
            name: value
            for name, value in fields.items()
            if name not in ("output", "overwrite")
        }


def _check_choices(name: str, values: Sequence[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")
