"""A small version of the benchmarks' network, on noise."""

import numpy as np

from examples.common.mlp import MLP
from examples.digits.dataset import Split
from studies.convergence import runs


def small_network(images, size, *, width, classes, batch, epochs):
    """Return a perceptron trained and evaluated on noise of size x size pixels."""
    draw = np.random.default_rng(0)
    noise = Split(
        draw.standard_normal((images, size, size, 1), np.float32),
        draw.integers(classes, size=images, dtype=np.int32),
    )
    return runs.Network(
        build=lambda network: MLP(network.layers, width, classes, network.momentum),
        data=runs.Data(noise, noise, noise),
        batch=batch,
        epochs=epochs,
        rates=(0.1,),
        targets={},
    )
