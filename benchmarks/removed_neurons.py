"""Removal of dead neurons: parameters, FLOPs and inference time, before and after.

    python -m benchmarks.removed_neurons

Three networks have random weights, and in their hidden layers a given fraction of
neurons has no incoming weights. Biases of dense layers are drawn at random, so dead
neurons of the transformer emit constants, which are folded into the next bias. After
norms without an offset they emit 0, as channels must before a convolution that pads
with zeros.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from examples.common.mlp import MLP
from reporting import harness

DEAD = (0.5, 0.71, 0.9)


class ResidualBlock(nn.Module):
    """Two convolutions beside a residual stream, with ``width`` channels in between."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map images to images with the same number of channels."""
        y = nn.Conv(self.width, (3, 3), use_bias=False, name="hidden_1")(x)
        y = nn.relu(nn.BatchNorm(not train)(y))
        y = nn.Conv(x.shape[-1], (3, 3), use_bias=False)(y)
        return nn.relu(x + nn.BatchNorm(not train)(y))


class TransformerMLP(nn.Module):
    """The MLP of a transformer's block, with ``width`` hidden features."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map tokens to tokens with the same number of features."""
        del train
        y = nn.gelu(nn.Dense(self.width, name="hidden_1")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class Network(NamedTuple):
    """A network of any width, and its input."""

    build: Callable[[int], nn.Module]
    width: int
    shape: tuple[int, ...]


def networks(quick: bool) -> dict[str, Network]:
    """Return the networks by name."""
    mlp = functools.partial(MLP, 2, classes=10)
    if quick:
        return {"MLP": Network(lambda width: mlp(width=width), 16, (2, 4, 4, 1))}
    return {
        "MLP 784-1024-1024-10, batch 128": Network(
            lambda width: mlp(width=width), 1024, (128, 28, 28, 1)
        ),
        "residual block, 64 channels, 32 images of 16x16": Network(
            ResidualBlock, 64, (32, 16, 16, 64)
        ),
        "transformer MLP 512-2048-512, 4x128 tokens": Network(
            TransformerMLP, 2048, (4, 128, 512)
        ),
    }


def with_dead_neurons(variables: Any, dead: float) -> Any:
    """Kill a fraction of the hidden neurons; draw biases of dense layers."""
    draw = np.random.default_rng(0)
    params = dict(variables["params"])
    for name, layer in params.items():
        if "bias" in layer and "kernel" in layer:
            bias = draw.normal(size=layer["bias"].shape)
            params[name] = layer = {**layer, "bias": jnp.asarray(bias, jnp.float32)}
        if name.startswith("hidden"):
            kernel = np.array(layer["kernel"])
            neurons = kernel.shape[-1]
            kernel[..., draw.permutation(neurons)[: round(dead * neurons)]] = 0.0
            params[name] = {**layer, "kernel": jnp.asarray(kernel)}
    return {**variables, "params": params}


def same_outputs(results: dict[str, Any]) -> None:
    """Raise unless both models give the same outputs up to rounding."""
    before, after = map(np.asarray, results.values())
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3 * np.ptp(before))


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.removed_neurons", options)
    for name, (build, width, shape) in networks(options.quick).items():
        x = jax.random.normal(jax.random.key(0), shape)
        first = jax.jit(functools.partial(build(width).init, train=False))
        for dead in DEAD:
            variables = with_dead_neurons(first(jax.random.key(1), x), dead)
            apply_fn = functools.partial(build(width).apply, train=False)
            small, found = so.remove_neurons(apply_fn, variables, x)
            (hidden,) = {w for p, w in found.widths.items() if p.startswith("hidden")}
            narrow = functools.partial(build(hidden).apply, train=False)
            candidates = [
                harness.Candidate(
                    "before", functools.partial(jax.jit(apply_fn), variables, x)
                ),
                harness.Candidate(
                    "after", functools.partial(jax.jit(narrow), small, x)
                ),
            ]
            timings = harness.measure(candidates, options.rounds_or(60), same_outputs)
            key = {"network": name, "dead": dead}
            size = {
                "parameters": found.parameters,
                "parameters_left": found.parameters_left,
                "flops": found.flops,
                "flops_left": found.flops_left,
            }
            title = f"{name}, {dead:.0%} dead"
            report.listing(title, [size], kind="size", **key)
            report.table(title, timings, "before", kind="time", **key)
            ratio = timings["after"].ratio(timings["before"]).median
            report.claim(f"{title}: after / before, time", ratio, **key)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
