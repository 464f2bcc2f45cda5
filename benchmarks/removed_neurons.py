"""Dead neurons removed: parameters, FLOPs and time of inference, before and after.

    python -m benchmarks.removed_neurons

Three networks with random weights, in whose hidden layers so many neurons have no
incoming weights. Biases of dense layers are drawn at random, so that dead neurons of
the transformer emit constants, which go into the next bias. Behind norms without an
offset they emit 0, as channels have to before a convolution that pads with zeros.
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
    """Two convolutions beside a residual stream; ``width`` channels lie between."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Images of as many channels."""
        y = nn.Conv(self.width, (3, 3), use_bias=False, name="hidden_1")(x)
        y = nn.relu(nn.BatchNorm(not train)(y))
        y = nn.Conv(x.shape[-1], (3, 3), use_bias=False)(y)
        return nn.relu(x + nn.BatchNorm(not train)(y))


class TransformerMLP(nn.Module):
    """The MLP of a transformer's block; ``width`` is that of its hidden layer."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Tokens of as many features."""
        del train
        y = nn.gelu(nn.Dense(self.width, name="hidden_1")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


class Network(NamedTuple):
    """A network of any width, and what it is given."""

    build: Callable[[int], nn.Module]
    width: int
    shape: tuple[int, ...]


def networks(quick: bool) -> dict[str, Network]:
    """The networks by name."""
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
    """Hidden layers with that fraction of dead neurons; biases of dense layers."""
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
    """Raises unless both models give the same, but for rounding."""
    before, after = map(np.asarray, results.values())
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-3 * np.ptp(before))


def main(options: harness.Options) -> None:
    """Runs the benchmark."""
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
