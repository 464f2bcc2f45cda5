"""A network of the benchmarks, small and on noise."""

import importlib
import sys
from pathlib import Path

import numpy as np

# Programs, that find each other in the folder they are started from.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
models = importlib.import_module("method_models")
runs = importlib.import_module("convergence_runs")


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
