"""The options of a run on CIFAR."""

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro

from examples.cifar.data import GLYPH_SIZES
from examples.cifar.recipes import (
    RECIPES,
    Correction,
    DatasetName,
    Distribution,
    Method,
    Network,
    Recipe,
)
from examples.common.augment import Padding
from examples.common.glyphs import DIFFICULTY
from examples.common.lengths import stretched
from examples.common.run_folder import default_output

FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))


def on_accelerator() -> bool:
    """Tell whether the devices are not CPUs, where convolutions in loops are slow."""
    return jax.default_backend() != "cpu"


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a ResNet-20 or a WRN-22-2 on CIFAR, dense or sparse, with several seeds.

    Options without a default come from the recipe unless they are passed.

    Attributes:
      recipe: How to train: one of the recipes in recipes.py, such as
        dense_cifar100_r20, rigl_cifar100_r20, sparseopt_cifar100_r20, rigl_wrn22_2.
      dataset: Data set to train on. Fashion-MNIST has 28x28 grey pixels. Glyphs are
        synthetic images of 100 classes that need no download, with 32x32 pixels, or
        16x16 as glyphs16.
      network: Network to train.
      width: Channels of the first stage.
      blocks: Residual blocks in each of the three stages.
      dropout: Fraction of the activations dropped in training; wrn22_2 only.
      method: Sparse training method, or dense.
      correction: Per-neuron scaling of the gradient: none, SparseOpt's factors from
        fan-ins, or the variances that Batch Normalization measures.
      ham: Whether HAM's multiplicative step follows each step.
      sparsity: Fraction of zeros over all kernels.
      distribution: How the active weights are distributed over the layers.
      epochs: Passes over the training images; the length of the warm-up is unchanged.
      batch_size: Images per step.
      learning_rate: Peak learning rate; it is not scaled with the batch size.
      warmup_epochs: Epochs of linear warm-up.
      decay_at: Fractions of the training at which the learning rate is divided by 5,
        all after the warm-up; empty for a cosine.
      final_learning_rate: Last value of the cosine.
      momentum: Momentum of SGD.
      nesterov: Whether to use Nesterov momentum.
      weight_decay: Coefficient of the L2 term, on kernels only.
      padding: Padding of an image before it is cropped.
      every: Steps between updates of the masks.
      drop_fraction: Fraction of the active weights replaced at the first update.
      stop: Fraction of the training after which the masks are frozen.
      multiplier: Multiple of the recipe's training length, warm-up included.
      seeds: Number of seeds: 0, 1, and so on. If they are trained one after another, a
        finished run can be continued with more seeds.
      together: Train all seeds at once in one program, instead of one after another.
        Default on accelerators, but not on CPU.
      loop: Take all steps between two updates of the masks in one compiled loop,
        instead of one by one. Default on accelerators, but not on CPU.
      dtype: Dtype of the computation. Parameters, momentum and statistics are float32.
        float32 convolutions run in TF32 on recent NVIDIA GPUs unless
        JAX_DEFAULT_MATMUL_PRECISION=float32 is set.
      train_images: Train on this many images only.
      test_images: Test on this many images only.
      data_dir: Folder of the data set, or where to prepare it. The default is that of
        tensorflow-datasets; glyphs are kept in runs/data. Fashion-MNIST is also read
        from a folder with its four IDX files, compressed or not, by default
        /usr/share/datasets/fashion-mnist, where Debian's package
        dataset-fashion-mnist installs them.
      evaluate_every: Epochs between evaluations.
      save_every: Epochs between checkpoints.
      output: Folder of the run. By default runs/cifar/<recipe>, followed by -<dataset>,
        -<sparsity> and -<epochs> if these are passed, the last also for --multiplier.
      overwrite: Replace a run with another configuration in that folder.
    """

    recipe: str = "sparseopt_cifar100_r20"
    dataset: DatasetName | None = None
    network: Network | None = None
    width: int | None = None
    blocks: int | None = None
    dropout: float | None = None
    method: Method | None = None
    correction: Correction | None = None
    ham: bool | None = None
    sparsity: float | None = None
    distribution: Distribution | None = None
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    warmup_epochs: float | None = None
    decay_at: tuple[float, ...] | None = None
    final_learning_rate: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    padding: Padding | None = None
    every: int | None = None
    drop_fraction: float | None = None
    stop: float | None = None
    multiplier: float = 1.0
    seeds: int = 1
    together: bool = dataclasses.field(default_factory=on_accelerator)
    loop: bool = dataclasses.field(default_factory=on_accelerator)
    dtype: Literal["float32", "bfloat16"] = "float32"
    train_images: int | None = None
    test_images: int | None = None
    data_dir: Path | None = None
    evaluate_every: int = 1
    save_every: int = 10
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.recipe not in RECIPES:
            nearest = difflib.get_close_matches(self.recipe, RECIPES, len(RECIPES), 0.0)
            raise ValueError(
                f"recipe {self.recipe!r} is not one of {', '.join(nearest)} (closest "
                "match first)"
            )
        _ = self.chosen  # raises

    @property
    def chosen(self) -> Recipe:
        """Return the recipe, with its fields overridden by the options."""
        changes = {name: getattr(self, name) for name in FIELDS}
        changes = {name: x for name, x in changes.items() if x is not None}
        recipe = dataclasses.replace(RECIPES[self.recipe], **changes)
        return stretched(recipe, self.multiplier)

    @property
    def at_once(self) -> int:
        """Return how many seeds are trained in one program."""
        return self.seeds if self.together else 1

    @property
    def folder(self) -> Path:
        """Return the folder of the run."""
        has_length = self.epochs is not None or self.multiplier != 1.0
        epochs = self.chosen.epochs if has_length else None
        return self.output or default_output(
            "cifar", self.recipe, self.dataset, self.sparsity, epochs
        )

    def record(self) -> dict[str, Any]:
        """Return everything that decides the results, for ``config.json``.

        Seeds that are trained one after another do not depend on their number.
        """
        recipe = dataclasses.asdict(self.chosen)
        names = ("dtype", "train_images", "test_images", "evaluate_every")
        chosen = {name: getattr(self, name) for name in names}
        if recipe["dataset"] in GLYPH_SIZES:
            chosen["glyphs"] = dataclasses.asdict(DIFFICULTY)
        return {
            **recipe,
            "decay_at": list(recipe["decay_at"]),
            **chosen,
            # Names the option to pass, for the error if a folder is refused.
            "trained": (
                f"{self.seeds} seeds together (--together)"
                if self.at_once > 1
                else "seed by seed (--no-together)"
            ),
        }
