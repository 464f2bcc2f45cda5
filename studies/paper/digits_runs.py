"""RigL on the digits' ResNet as ``examples/digits`` trains it, for the figures.

Optimizer, learning rate, weight decay, epochs and the steps at which masks are updated
are those of the example; figures vary the topology and the correction.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

import sparseopt_jax as so
from examples.digits import training
from examples.digits.config import WEIGHT_DECAY, Config
from examples.digits.model import ResNet
from reporting.training import load_digits
from sparseopt_jax.topologies import Rewiring


def config(sparsity: float, quick: bool) -> Any:
    """Return the configuration of a run; a few epochs only, if quick."""
    of = Config(sparsity=sparsity)
    return dataclasses.replace(of, epochs=4) if quick else of


def topology(of: Any, *, corrected_growth: bool = False) -> Rewiring:
    """Return the example's RigL, with explored weights tracked."""
    rigl = training.make_topology(of, "rigl")
    assert isinstance(rigl, Rewiring)
    seen = so.scores.corrected_gradient if corrected_growth else so.scores.gradient
    return dataclasses.replace(rigl, grow=seen)


class Runs:
    """Train one arm, compiled once for all its seeds.

    Attributes:
      tx: the optimizer.
    """

    def __init__(
        self, of: Any, rigl: so.Topology, *, sparseopt: bool, quick: bool
    ) -> None:
        """Prepare the arm, compile nothing; if quick, use no blocks and learn noise."""
        self.config, self._topology, self._sparseopt = of, rigl, sparseopt
        self.model = ResNet(of.width, strides=()) if quick else ResNet(of.width)
        self.train, self.test = load_digits(quick)
        self.tx = self._optimizer(0)

    def _optimizer(self, key: Any) -> Any:
        return so.sparse_sgd(
            training.learning_rate(self.config),
            self._topology,
            momentum=0.9,
            weight_decay=WEIGHT_DECAY["sgd"],
            sparseopt=self._sparseopt,
            key=key,
        )

    def start(self, seed: int) -> so.linen.TrainState:
        """Return the state before the first step, drawn from the seed."""
        # All seeds share one optimizer, or each would compile again.
        return training.start(self.model, self._optimizer, seed).replace(tx=self.tx)

    def batches(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the full batches of all epochs, in an order that the seed decides."""
        draw = np.random.default_rng(seed)
        size = self.config.batch_size
        return training.batches(self.train, self.config.epochs, draw, size)

    def accuracy(self, state: so.linen.TrainState) -> float:
        """Return the accuracy on the test images."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return float(training.evaluate(self.model, variables, *self.test)[0])
