"""LARS and LAMB against SGD and Adam as batches grow, dense and sparse.

    python -m studies.large_batch

The study tests the claim of LAMB's paper (You et al., 2020, arXiv 1904.00962): if the
learning rate scales with the square root of the batch, and the warm-up's share of the
training with the batch, nothing has to be retuned when the batch grows, which does not
hold for Adam. Here a small ResNet learns scanned digits, dense and with 90 % zeros
under RigL. Counted are the epochs and the steps until the loss reaches a fixed value.

What makes the comparison fair and repeatable:

- Each optimizer's learning rate is tuned once, at the smallest batch, separately for
  dense and sparse, over five rates that are a factor of 2 apart. The best takes the
  fewest steps. At every other batch the rule alone decides, for SGD and LARS as for
  Adam and LAMB.
- A run has 40 epochs at every batch: warm-up, then linear decay to zero. It ends when
  it reaches the loss. A run that does not is reported as such, not left out.
- The warm-up takes 1/160 of the training at a batch of 32 and 1/5 at 1,024, the largest
  share in the paper. In steps this is the same at every batch.
- The loss is taken over all training images at once, normalised by their own
  statistics, so it depends neither on the batch nor on the lag of running statistics.
  It is evaluated after each epoch and interpolated linearly in its logarithm in
  between. The target was fixed beforehand, the same for all.
- RigL updates the masks every four epochs, equally often at every batch. An update
  replaces a step, and large batches have few steps.
- Momentum and weight decay are those of the other benchmarks: 5e-4 in the gradient for
  SGD and LARS, decoupled 1e-2 for Adam and LAMB. SparseOpt's correction is off: dense
  and sparse runs differ only by the masks.
- LARS's coefficient is 0.02 instead of the usual 0.001. So biases and normalisations,
  which its ratio does not scale, have the same learning rates as under SGD.
- At the largest batch all five rates are tried again, each scaled by the rule: this
  separates the cost of the rule from the cost of the batch itself.

There are 1,197 training images, so a batch of 1,024 is most of them, and 4,096 would be
more than three times the data set: these batches end about where the paper's begin.
"""

import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from examples.digits.model import ResNet
from reporting import harness
from reporting.training import IMAGE, load_digits, loss_of
from studies.large_batch.compare import OPTIMIZERS, Plan, Task, compare, quicker
from studies.large_batch.picture import draw

BATCHES = (32, 64, 128, 256, 512, 1024)
EPOCHS, SEEDS = 40, 2
TARGET = 0.01


class Network:
    """A model on its images: gradients and the loss, compiled once for each batch size.

    Batches are always normalised by their own statistics; running statistics are not
    used.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, labels: np.ndarray):
        """Prepare the network; compile no step yet."""
        self.images, self.labels = images, labels
        self._all = jax.device_put((images, labels))
        self._init = jax.jit(functools.partial(model.init, train=False))
        loss_of_batch = loss_of(model)
        batch_stats = self._variables(0).get("batch_stats", {})

        def loss(params, batch):
            return loss_of_batch(params, batch_stats, batch)[0]

        self._loss, self.gradient = jax.jit(loss), jax.jit(jax.grad(loss))

    def _variables(self, seed: int) -> Any:
        return self._init(jax.random.key(seed, impl="rbg"), IMAGE)

    def start(self, seed: int) -> Any:
        """Return the weights before the first step."""
        return self._variables(seed)["params"]

    def loss(self, params: Any) -> float:
        """Return the loss over all images at once."""
        return float(self._loss(params, self._all))

    def batches(self, plan: Plan, seed: int) -> Iterator[tuple[Any, Any]]:
        """Yield one batch per step of the plan, from epochs in random order."""
        draw = np.random.default_rng(seed)
        order = [draw.permutation(plan.images) for _ in range(plan.epochs)]
        places = np.concatenate(order)[: plan.steps * plan.batch]
        for chosen in places.reshape(plan.steps, plan.batch):
            yield self.images[chosen], self.labels[chosen]


def main(options: harness.Options) -> None:
    """Run the study."""
    report = harness.Report("studies.large_batch", options)
    train, _ = load_digits(options.quick)
    model = ResNet(4, strides=()) if options.quick else ResNet(16)
    network = Network(model, *train)
    rates = {name: optimizer.rates for name, optimizer in OPTIMIZERS.items()}
    digits = Task(network, len(train.labels), EPOCHS, BATCHES, TARGET, rates, SEEDS)
    if options.quick:
        digits = quicker(digits)
    for density in ("dense", "sparse"):
        compare(report, digits, density)
    report.picture(draw(report.record))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
