"""A network of the benchmarks, small and on noise."""

import numpy as np

from benchmarks import method_models as models
from studies.convergence import runs


def small_network(images, size, *, width, classes, batch, epochs):
    """A perceptron to be trained on noise of size x size pixels, and judged by it."""
    draw = np.random.default_rng(0)
    noise = models.Split(
        draw.standard_normal((images, size, size, 1), np.float32),
        draw.integers(classes, size=images, dtype=np.int32),
    )
    return runs.Network(
        build=lambda own: runs.MLP(
            own.layers, own.momentum, width=width, classes=classes
        ),
        data=runs.Data(noise, noise, noise),
        batch=batch,
        epochs=epochs,
        rates=(0.1,),
        targets={},
    )
