"""Figure 2: how much larger the gradients of sparse layers are at initialisation.

    python -m studies.paper.gradient_ratio

What the paper shows: with Batch Normalization the gradient norm per weight of a sparse
layer is (1 - s)^(-1/2) times that of the dense layer; without, the two are about equal.
Its network is a two-layer MLP on MNIST, at sparsities from 0 to 0.9.

What is measured here: the root mean square gradient over the active weights of a layer,
relative to the same network with all weights active, in one batch of 512, before any
training. Dense initialisation draws all weights as if the layer were dense and removes
some; ``so.sparse_init`` divides by each neuron's own fan-in instead. Active weights are
drawn over the whole layer, so fan-ins differ.

MNIST would need a download. It is replaced by normal inputs, which satisfy the theory's
assumptions, and by the scanned digits of scikit-learn, of which, as in MNIST, some
pixels are always empty. The small ResNet of the examples is not in the paper's figure.
Its first convolution, with nine inputs per neuron, and its head are dense, and its
ratio is the mean over the sparse layers.

The digits' pixels share one scale and differ in variance, against the theory's
assumptions. After a first look at the results a fourth network was added to test this
explanation: the same MLP on the pixels that vary, each standardised to mean 0 and
variance 1.

What the paper leaves open, and we chose: 128 hidden neurons, 512 images, He's
initialisation, random labels for the normal inputs.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import sparseopt_jax as so
from reporting import harness
from reporting.figures import COLORS, legend, panels
from sparseopt_jax.arrays.selection import random_mask
from sparseopt_jax.trees.leaf_keys import leaf_key
from studies.paper.ratio_networks import MLPS, Batch, Network, networks
from studies.paper.report import Report

SPARSITIES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Read from the authors' figure, for sparsities 0 to 0.9.
FIGURE = {
    True: (1.000, 1.058, 1.126, 1.231, 1.365, 1.537, 1.730, 1.991, 2.401, 3.549),
    False: (1.00, 1.03, 1.04, 1.05, 1.06, 1.00, 1.06, 1.08, 1.08, 1.05),
}
SEEDS = 8
NEAR = 0.15  # relative distance from theory and figure that counts as the same
DENSE = ("stem", "head")  # layers that stay dense

# Whether normalisations are active, and whether weights are drawn by fan-in.
ARMS = ((True, False), (False, False), (True, True), (False, True))
# A network with one of these.
Arm = tuple[str, bool, bool]


def theory(sparsity: float) -> float:
    """Return the ratio of the paper's equation 11.

    >>> theory(0.75)
    2.0
    """
    return (1.0 - sparsity) ** -0.5


def per_weight(grad: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the root mean square gradient over the active weights."""
    squares = jnp.sum(jnp.where(mask, grad, 0) ** 2)
    return jnp.sqrt(squares / jnp.maximum(jnp.sum(mask), 1))


def random_masks(key: jax.Array, params: Any, density: jax.Array) -> Any:
    """Draw masks of one density for all kernels except those that stay dense."""

    def at_leaf(path, leaf):
        if leaf.ndim < 2 or path[0] in DENSE:
            return optax.MaskedNode()
        active = jnp.round(density * leaf.size).astype(jnp.int32)
        return random_mask(leaf_key(key, "/".join(path)), leaf.shape, active)

    return traverse_util.path_aware_map(at_leaf, params)


def without_norm(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Pass on the input of Batch Normalization; for ``nn.intercept_methods``."""
    if isinstance(context.module, nn.BatchNorm):
        return args[0]
    return call(*args, **kwargs)


@functools.partial(jax.jit, static_argnames=("model", "batch_norm", "sparse_init"))
def gradient_norms(
    model: nn.Module,
    key: jax.Array,
    density: jax.Array,
    batch: Batch,
    *,
    batch_norm: bool,
    sparse_init: bool,
) -> dict[str, jax.Array]:
    """Return per-weight gradient norms of the sparse layers, by path.

    Args:
      model: the network.
      key: key of weights and masks.
      density: density of each sparse layer; 1 makes it dense in the same program.
      batch: inputs and labels.
      batch_norm: whether the normalisations are active.
      sparse_init: whether weights are drawn by each neuron's own fan-in.

    Returns:
      float32 scalars.
    """
    inputs, labels = batch
    init_key, mask_key, draw_key = jax.random.split(key, 3)
    variables = model.init(init_key, inputs[:1], train=False)
    masks = random_masks(mask_key, variables["params"], density)
    params = so.apply_masks(variables["params"], masks)
    if sparse_init:
        params = so.sparse_init(params, masks, draw_key)

    def loss(params):
        logits: Any = model.apply(
            {**variables, "params": params}, inputs, train=True, mutable=["batch_stats"]
        )[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    if batch_norm:
        grads = jax.grad(loss)(params)
    else:
        with nn.intercept_methods(without_norm):
            grads = jax.grad(loss)(params)
    flat: Any = traverse_util.flatten_dict(grads, sep="/")
    return {
        path: per_weight(flat[path], mask)
        for path, mask in traverse_util.flatten_dict(masks, sep="/").items()
        if isinstance(mask, jax.Array)
    }


def ratios(
    network: Network,
    sparsities: Sequence[float],
    seeds: int,
    *,
    batch_norm: bool,
    sparse_init: bool,
) -> dict[str, np.ndarray]:
    """Return gradient norms relative to dense: (seeds, sparsities), by layer."""
    found: dict[str, list[list[float]]] = {}
    for seed in range(seeds):
        # The default kind of key takes seconds to compile for each network on CPU.
        key, batch = jax.random.key(seed, impl="rbg"), network.batch(seed)
        rows = [
            gradient_norms(
                *(network.model, key, 1 - jnp.float32(sparsity), batch),
                batch_norm=batch_norm,
                sparse_init=sparse_init,
            )
            for sparsity in (0.0, *sparsities)
        ]
        for path in rows[0]:
            norms = [float(row[path]) for row in rows]
            found.setdefault(path, []).append([n / norms[0] for n in norms[1:]])
    return {path: np.array(values) for path, values in found.items()}


def off(measured: Iterable[float], expected: Iterable[float]) -> float:
    """Return the largest relative distance.

    >>> off([1.0, 3.0], [1.0, 2.0])
    0.5
    """
    pairs = zip(measured, expected, strict=True)
    return max(float(abs(a / b - 1)) for a, b in pairs)


def _spread(values: np.ndarray) -> dict[str, float]:
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    return {"mean": round(mean, 4), "sd": round(sd, 4)}


def judge(
    report: Report, sparsities: Sequence[float], means: dict[Arm, np.ndarray]
) -> None:
    """Add the claims, on the sparsities of the paper's figure."""
    shown = [i for i, sparsity in enumerate(sparsities) if sparsity in SPARSITIES[:10]]
    expected = [theory(sparsities[i]) for i in shown]
    read_off = {
        batch_norm: [values[SPARSITIES.index(sparsities[i])] for i in shown]
        for batch_norm, values in FIGURE.items()
    }
    found = {arm: means[arm][shown] for arm in means}
    for name in MLPS:
        plain, without = (found[name, normed, False] for normed in (True, False))
        what = f"{name}, with BN: farthest from"
        report.published(f"{what} the theory", off(plain, expected), at_most=NEAR)
        distance = off(plain, read_off[True])
        report.published(f"{what} the paper's points", distance, at_most=NEAR)
        what = f"{name}, without BN: farthest from the paper's points"
        report.published(what, off(without, read_off[False]), at_most=NEAR)
    for (name, batch_norm, sparse_init), ratios in found.items():
        if batch_norm and sparse_init:
            what = f"{name}, with BN, sparse-aware initialisation: farthest from 1"
            report.claim(what, off(ratios, [1.0] * len(shown)), at_most=NEAR)
        elif batch_norm and name not in MLPS:
            what = f"{name}, with BN: farthest from the theory"
            report.claim(what, off(ratios, expected), at_most=NEAR)


def draw(rows: Sequence[dict[str, Any]]) -> Any:
    """Draw a panel for each network."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, places = panels(1, len(names), (3.4 * len(names), 3.6))
    for axes, name in zip(places[0], names, strict=True):
        curve = np.linspace(0, SPARSITIES[-1], 200)
        axes.plot(curve, (1 - curve) ** -0.5, "k-", lw=1, label="$(1 - s)^{-1/2}$")
        network_rows = [row for row in rows if row["network"] == name]
        arms = dict.fromkeys((row["batch_norm"], row["init"]) for row in network_rows)
        for color, (batch_norm, init) in zip(COLORS, arms, strict=False):
            points = [
                r
                for r in network_rows
                if (r["batch_norm"], r["init"]) == (batch_norm, init)
            ]
            x, mean, sd = (
                [row[key] for row in points] for key in ("sparsity", "mean", "sd")
            )
            label = f"{'with' if batch_norm else 'without'} BN, {init} init"
            axes.errorbar(
                *(x, mean, sd),
                fmt="o-",
                ms=3,
                lw=0.8,
                capsize=2,
                color=color,
                label=label,
            )
        if name in MLPS:
            for batch_norm, values in FIGURE.items():
                label = None if batch_norm else "the paper's figure"
                x = SPARSITIES[: len(values)]
                axes.plot(x, values, "kx", ms=5, label=label)
        axes.set(title=name, xlabel="sparsity", yscale="log")
        ticks = ["1/32", "1/16", "1/8", "1/4", "1/2", "1", "2", "4", "8"]
        axes.set_yticks([2.0**power for power in range(-5, 4)], ticks)
        axes.set_ylim(0.2 if "MLP" in name else 0.02, 10)
        axes.minorticks_off()
    places[0, 0].set_ylabel("gradient norm per weight (multiple of dense)")
    legend(places[0, 0], loc="upper left")
    return figure


def main(options: harness.Options) -> None:
    """Run the study."""
    report = Report("studies.paper.gradient_ratio", options)
    seeds = 2 if options.quick else SEEDS
    sparsities = SPARSITIES[::5] if options.quick else SPARSITIES
    rows, layers, means = [], [], {}
    for network in networks(options.quick):
        few = options.quick and network.name not in MLPS
        for batch_norm, sparse_init in ARMS[:1] if few else ARMS:
            by_layer = ratios(
                *(network, sparsities, seeds),
                batch_norm=batch_norm,
                sparse_init=sparse_init,
            )
            mean_ratios = np.mean(list(by_layer.values()), axis=0)
            means[network.name, batch_norm, sparse_init] = mean_ratios.mean(axis=0)
            init = "sparse-aware" if sparse_init else "dense"
            about = {"network": network.name, "batch_norm": batch_norm, "init": init}
            for sparsity, values in zip(sparsities, mean_ratios.T, strict=True):
                row = {"sparsity": sparsity, "theory": round(theory(sparsity), 4)}
                rows.append({**about, **row, **_spread(values)})
            for path, values in by_layer.items():
                row = {"layer": path, "sparsity": sparsities[-2]}
                layers.append({**about, **row, **_spread(values[:, -2])})
    report.listing(
        f"gradient norm per weight, sparse / dense, {seeds} seeds", rows, kind="ratios"
    )
    report.listing(f"by layer, {seeds} seeds", layers, kind="layers")
    report.record["paper"] = {"with BN": FIGURE[True], "without BN": FIGURE[False]}
    judge(report, sparsities, means)
    report.picture(draw(rows))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
