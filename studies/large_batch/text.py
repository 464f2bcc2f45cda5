"""LARS and LAMB against SGD and Adam as batches grow, on a small language model.

    python -m studies.large_batch.text

The same questions as ``studies.large_batch`` asks of a ResNet, for a decoder that
learns the bytes of Python's standard library, and the same rules: one tuning at the
smallest batch, then the rule alone. A run sees 32,768 windows of 64 bytes, each once,
at every batch; RigL updates the masks ten times. The loss, in nats per byte, is taken
on held-out text after every 1,024 windows. At a batch of 2,048 a run has 16 steps; at
4,096 it would have eight, so the batches end there.

Weight decay and momentum are those of the ResNet, and the learning rates to try suit
this network. The decoder has half the width of the one that ``examples/language_model``
calls tiny, so that two hundred runs fit into an hour.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.language_model import data, net
from reporting import harness
from studies.large_batch.compare import Plan, Task, compare, quicker
from studies.large_batch.picture import draw

BATCHES = (32, 128, 512, 2048)
WINDOWS, EPOCHS, SEEDS = 1_024, 32, 2
LENGTH, HELD_OUT = 64, 256
SIZE = net.Size(width=32, hidden=96, heads=2, layers=2)
TARGET = 3.0 * math.log(2)  # three bits per byte, fixed before any measurement
RATES = {
    "SGD": (0.05, 0.1, 0.2, 0.4, 0.8),
    "LARS": (0.05, 0.1, 0.2, 0.4, 0.8),
    "Adam": (0.001, 0.002, 0.004, 0.008, 0.016),
    "LAMB": (0.005, 0.01, 0.02, 0.04, 0.08),
}


class Reader:
    """A decoder and the text that it learns."""

    def __init__(self, size: Any, splits: Any):
        """Prepare the decoder; compile no step yet."""
        self._model = net.LanguageModel(size, data.VOCABULARY, tied=False)
        self._train = splits.train
        self._held_out = self._windows(splits.validation, 0, 0, HELD_OUT)
        self._init = jax.jit(self._model.init)
        self._loss = jax.jit(self._loss_of)
        self.gradient = jax.jit(jax.grad(self._loss_of))

    def start(self, seed: int) -> Any:
        """Return the weights before the first step."""
        key = jax.random.key(seed, impl="rbg")
        return self._init(key, jnp.zeros((1, 8), jnp.int32))["params"]

    def loss(self, params: Any) -> float:
        """Return the held-out loss in nats per byte."""
        return float(self._loss(params, self._held_out))

    def batches(self, plan: Plan, seed: int) -> Iterator[np.ndarray]:
        """Yield windows from new random positions each step: int32 (batch, length)."""
        for number in range(plan.steps):
            yield self._windows(self._train, seed, number, plan.batch)

    def _windows(self, source: Any, seed: int, number: int, rows: int) -> np.ndarray:
        return data.batch(source, seed=seed, number=number, rows=rows, length=LENGTH)

    def _loss_of(self, params: Any, windows: jax.Array) -> jax.Array:
        logits: Any = self._model.apply({"params": params}, windows[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return jnp.mean(losses)


def main(options: harness.Options) -> None:
    """Run the study."""
    report = harness.Report("studies.large_batch.text", options)
    size, windows = SIZE, WINDOWS
    if options.quick:
        size, windows = net.Size(width=8, hidden=16, heads=1, layers=1), 128
    splits = data.load("stdlib", length=LENGTH)
    task = Task(Reader(size, splits), windows, EPOCHS, BATCHES, TARGET, RATES, SEEDS)
    if options.quick:
        task = quicker(task)
    for density in ("dense", "sparse"):
        compare(report, task, density)
    report.picture(draw(report.record))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
