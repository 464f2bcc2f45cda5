"""LARS and LAMB against SGD and Adam as batches grow, dense and sparse.

    python -m studies.large_batch

The question is the claim of LAMB's paper (You et al., 2020, arXiv 1904.00962): with the
learning rate in proportion to the square root of the batch, and the warm-up's share of
the training in proportion to the batch, nothing has to be tuned again when the batch
grows, which does not hold for Adam. Here a small ResNet learns scanned digits, dense
and with nine in ten weights left out and moved by RigL, and what is counted are the
epochs and the steps until the loss has come down to a fixed one.

How it is made fair, and repeatable:

- Each optimizer's learning rate is tuned once, at the smallest batch, dense and sparse
  apart, over five rates that are a factor of 2 from each other. The best is that which
  takes the fewest steps. At every other batch the rule alone decides, for SGD and LARS
  as for Adam and LAMB.
- A run has 40 epochs, whatever the batch: warm-up, then linear decay to zero. It ends
  when it has reached the loss. One that has not is reported as such, not left out.
- The warm-up takes 1/160 of the training at a batch of 32 and 1/5 at 1,024, the largest
  share in the paper. In steps that is the same at every batch.
- The loss is that of all training images at once, normalised by their own statistics,
  so that it depends neither on the batch nor on how running statistics lag. It is
  looked at after each epoch, and between two of them followed along a straight line of
  its logarithm. The loss aimed at was fixed beforehand, for all.
- RigL changes masks every four epochs, so as often at any batch. A change takes the
  place of a step, of which large batches have few.
- Momentum and weight decay are those of the other benchmarks: 5e-4 in the gradient for
  SGD and LARS, 1e-2 beside it for Adam and LAMB. SparseOpt's correction is off: dense
  and sparse runs differ by the masks alone.
- LARS's coefficient is 0.02 in place of the customary 0.001. Biases and normalisations,
  which its ratio leaves alone, thus have the learning rates that SGD has.
- At the largest batch all five rates are tried again, each scaled by the rule: what it
  costs to follow the rule there can be told from what the batch itself costs.

There are 1,197 training images, so that a batch of 1,024 is most of them, and 4,096
would be every image more than three times over: the batches end about where the paper's
begin.
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
    """A model on its images: gradients and the loss, compiled once for each batch.

    Batches are normalised by their own statistics throughout: running ones take no
    part.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, labels: np.ndarray):
        """Compiles no step yet."""
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
        """The weights before the first step."""
        return self._variables(seed)["params"]

    def loss(self, params: Any) -> float:
        """Of all images at once."""
        return float(self._loss(params, self._all))

    def batches(self, plan: Plan, seed: int) -> Iterator[tuple[Any, Any]]:
        """As many as the plan has steps, from epochs in random order."""
        draw = np.random.default_rng(seed)
        order = [draw.permutation(plan.images) for _ in range(plan.epochs)]
        places = np.concatenate(order)[: plan.steps * plan.batch]
        for chosen in places.reshape(plan.steps, plan.batch):
            yield self.images[chosen], self.labels[chosen]


def main(options: harness.Options) -> None:
    """Runs the study."""
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
