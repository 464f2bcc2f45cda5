"""The options of a run on ImageNet."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from examples.common.run_folder import default_output
from examples.imagenet.mesh import Processes
from examples.imagenet.recipes import RECIPES, Distribution, Method, Recipe, lengthened


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a ResNet-50 on ImageNet, dense or sparse, on one device or a whole pod.

    Attributes:
      recipe: How to train. RigL's recipe (dense, rigl, rigl_erk) or SparseOpt's.
      method: Sparse training method, or dense. By default that of the recipe.
      sparseopt: Whether to correct gradients per neuron. By default as in the recipe.
      sparsity: Fraction of zeros over all kernels. By default that of the recipe.
      distribution: How the active weights are distributed over the layers. By default
        that of the recipe.
      batch_size: Images per step over all devices. By default that of the recipe. The
        learning rate and the steps between updates of the masks scale with it.
      learning_rate: Peak for a batch of 256, scaled in proportion to the batch. By
        default that of the recipe.
      every: Steps between updates of the masks. By default that of the recipe.
      multiplier: Multiple of the recipe's training length; 5 is RigL's 5x.
      accumulate: Batches over which each step averages its gradients, each of
        batch_size / accumulate images.
      seed: Seed of weights, masks, order and augmentation.
      dataset: Name in tensorflow-datasets.
      data_dir: Folder in which it is prepared.
      image_size: Height and width of the network's input.
      resize: Length that the shorter side is scaled to in evaluation, before the
        central crop.
      width: Channels of the first stage.
      stages: Blocks in each stage.
      zero_init: Initialise every block as its shortcut.
      dtype: Dtype of the computation. Parameters, momentum and statistics are float32.
      mesh: Number of devices that copy the parameters and that split them, such as
        data=8,fsdp=1. By default all copy them.
      group: How the processes of this run find each other.
      workers: Threads per process that decode images.
      prefetch: Batches to decode ahead.
      log_every: Steps between rows of the log.
      evaluate_every: Epochs between evaluations.
      save_every: Steps between checkpoints.
      output: Folder of the run, the same for all processes. By default
        runs/imagenet/<recipe>, followed by -<dataset>, -<sparsity> and -<epochs> if
        they differ from the defaults.
      overwrite: Replace a run with another configuration in that folder.
    """

    recipe: Literal[tuple(RECIPES)] = "rigl_erk"  # pyright: ignore
    method: Method | None = None
    sparseopt: bool | None = None
    sparsity: float | None = None
    distribution: Distribution | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    every: int | None = None
    multiplier: float = 1.0
    accumulate: int = 1
    seed: int = 0
    dataset: str = "imagenet2012"
    data_dir: str | None = None
    image_size: int = 224
    resize: int = 256
    width: int = 64
    stages: tuple[int, ...] = (3, 4, 6, 3)
    zero_init: bool = True
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    mesh: str = ""
    group: Annotated[Processes, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=Processes
    )
    workers: int = 16
    prefetch: int = 4
    log_every: int = 100
    evaluate_every: int = 5
    save_every: int = 1000
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.group.check()
        positive = ("accumulate", "image_size", "width", "workers", "prefetch")
        for name in (*positive, "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if not self.stages or min(self.stages) < 1:
            raise ValueError(f"stages must all be at least 1, got {self.stages}")
        if self.resize < self.image_size:
            raise ValueError(
                f"resize must be at least image_size = {self.image_size}, got "
                f"{self.resize}"
            )
        if self.chosen.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate = {self.accumulate}, got "
                f"{self.chosen.batch_size}"
            )

    @property
    def chosen(self) -> Recipe:
        """Return the recipe, with its fields overridden by the options."""
        names = ("method", "sparseopt", "sparsity", "distribution", "batch_size")
        names += ("learning_rate", "every")
        changes = {name: getattr(self, name) for name in names}
        changes = {name: x for name, x in changes.items() if x is not None}
        recipe = dataclasses.replace(RECIPES[self.recipe], **changes)
        return lengthened(recipe, self.multiplier)

    @property
    def micro_batch(self) -> int:
        """Return the number of images per gradient, over all devices."""
        return self.chosen.batch_size // self.accumulate

    @property
    def folder(self) -> Path:
        """Return the folder of the run; it depends only on options that all share."""
        dataset = self.dataset if self.dataset != Config.dataset else None
        epochs = self.chosen.epochs if self.multiplier != 1.0 else None
        return self.output or default_output(
            "imagenet", self.recipe, dataset, self.sparsity, epochs
        )

    def record(self) -> dict[str, Any]:
        """Return everything that decides the results, for ``config.json``."""
        names = ("accumulate", "seed", "dataset", "image_size", "resize", "width")
        settings = {
            name: getattr(self, name) for name in (*names, "zero_init", "dtype")
        }
        return {
            **dataclasses.asdict(self.chosen),
            **settings,
            "stages": list(self.stages),
        }
