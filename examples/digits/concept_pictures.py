"""Draw the pictures of ``docs/concepts.md`` with the package itself.

python -m examples.digits.concept_pictures --folder pictures
"""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import sparseopt_jax as so
from examples.digits.model import ResNet

# Safe for colour-blind readers.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "0.55"


def neurons() -> Figure:
    """Draw a random mask, the fan-in of each neuron, and SparseOpt's factors."""
    params = {"kernel": jnp.ones((24, 32))}
    tx = so.sparsify(so.scale_by_sparseopt(), so.static(0.8), key=2)
    opt_state = tx.init(params)
    mask = np.asarray(so.get_masks(opt_state)["kernel"])
    # A gradient of ones comes out as the factors, where the mask is True.
    params = so.apply_masks(params, opt_state)
    scaled: Any = tx.update({"kernel": jnp.ones((24, 32))}, opt_state, params)[0]
    factors = np.max(scaled["kernel"], axis=0)

    figure = Figure((6.5, 5.0), layout="constrained")
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=(4, 1.2, 1.2))
    top.imshow(mask, cmap=ListedColormap(["white", "0.35"]), aspect="auto")
    top.set(ylabel="input", title="a mask: inputs by neurons, 80 % sparse")
    middle.bar(range(32), mask.sum(axis=0), color=GREY)
    middle.set(ylabel="fan-in")
    bottom.bar(range(32), factors, color=BLUE)
    bottom.axhline(1.0, color="black", linewidth=0.8)
    bottom.set(ylabel="factor", xlabel="neuron")
    return _plain(figure)


def change() -> Figure:
    """Draw a mask before, at and after updates; half of the inputs are noise."""
    inputs, neurons, steps, every = 24, 32, 400, 20
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.standard_normal((512, inputs)), jnp.float32)
    teacher = draw.standard_normal((inputs // 2, 4))
    labels = jnp.asarray(np.argmax(images[:, : inputs // 2] @ teacher, axis=1))
    model = nn.Sequential([nn.Dense(neurons), nn.relu, nn.Dense(4)])
    params = model.init(jax.random.key(0), images)["params"]
    topology = so.rigl(
        0.8, every=every, stop=300, where=lambda path, leaf: leaf.shape[-1] == neurons
    )
    tx = so.sparse_sgd(0.1, topology, momentum=0.9)
    opt_state = tx.init(params)
    params = so.apply_masks(params, opt_state)

    @jax.jit
    def step(params, opt_state):
        def loss(params):
            logits: Any = model.apply({"params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        grads = jax.grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    masks = [jax.device_get(so.get_masks(opt_state))]
    for index in range(steps):
        params, opt_state = step(params, opt_state)
        if topology.due(index):
            masks.append(jax.device_get(so.get_masks(opt_state)))

    figure = Figure((9.5, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    shown = (masks[0], None), (masks[1], masks[0]), (masks[-1], None)
    titles = "at random", "the first update", f"after {len(masks) - 1} updates"
    for axes, (mask, before), title in zip(panels, shown, titles, strict=True):
        image = so.plot.masks(mask, "layers_0/kernel", before).axes[0].images[0]
        axes.imshow(
            image.get_array(),
            cmap=ListedColormap(["white", "0.7", BLUE, "#F0A35E"]),
            vmin=0,
            vmax=3,
            aspect="auto",
        )
        axes.axhline(inputs / 2 - 0.5, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="neuron")
    panels[0].set_ylabel("input")
    for color, label in ((BLUE, "grown"), ("#F0A35E", "dropped")):
        panels[1].plot([], [], "s", color=color, label=label)
    figure.legend(loc="outside right center", frameon=False)
    return _plain(figure)


def amplification() -> Figure:
    """Draw gradients per weight over density: with BN, without, corrected."""
    batch, inputs, neurons, dense = 1024, 256, 144, 32
    draw = np.random.default_rng(0)
    # The last ones are dense, as the reference.
    fan_ins = np.round(np.geomspace(8, inputs, neurons - dense)).astype(int)
    fan_ins = np.append(fan_ins, np.full(dense, inputs))
    mask = np.zeros((inputs, neurons), bool)
    for neuron, fan_in in enumerate(fan_ins):
        mask[draw.choice(inputs, fan_in, replace=False), neuron] = True
    x = jnp.asarray(draw.standard_normal((batch, inputs)), jnp.float32)
    behind = jnp.asarray(draw.standard_normal((batch, neurons)), jnp.float32)
    kernel = draw.standard_normal((inputs, neurons)) * np.sqrt(2 / inputs)
    params = {"kernel": jnp.asarray(np.where(mask, kernel, 0), jnp.float32)}

    def loss(params, normalized):
        y = x @ params["kernel"]
        if normalized:
            y = (y - y.mean(axis=0)) / jnp.sqrt(y.var(axis=0) + 1e-5)
        return jnp.sum(behind * nn.relu(y)) / batch

    tx = so.sparsify(so.scale_by_sparseopt(), so.static(masks={"kernel": mask}))
    with_norm = jax.grad(loss)(params, True)
    corrected, _ = tx.update(with_norm, tx.init(params), params)
    without = jax.grad(loss)(params, False)

    def per_weight(gradient):
        squares = np.sum(np.square(np.where(mask, gradient["kernel"], 0)), axis=0)
        norms = np.sqrt(squares / fan_ins)
        return norms / norms[-dense:].mean()

    density = fan_ins / inputs
    figure = Figure((6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    theory = {"color": "black", "linewidth": 0.8, "label": "1 / sqrt(density)"}
    axes.loglog(density, density**-0.5, **theory)
    for gradient, color, label in (
        (with_norm, ORANGE, "with Batch Normalization"),
        (corrected, BLUE, "the same, corrected"),
        (without, GREY, "without normalisation"),
    ):
        axes.loglog(density, per_weight(gradient), ".", color=color, label=label)
    axes.set(
        xlabel="density of the neuron (fan-in over inputs)",
        ylabel="gradient per weight,\nrelative to dense neurons",
    )
    for axis, ticks in (
        (axes.xaxis, (0.03, 0.1, 0.3, 1)),
        (axes.yaxis, (0.5, 1, 2, 4, 8)),
    ):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    return _plain(figure)


def densities() -> Figure:
    """Draw the densities that three distributions give to the layers of a ResNet."""
    variables = ResNet(16).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    figure = Figure((8.0, 3.6), layout="constrained")
    axes = figure.subplots()
    styles = {
        "uniform": GREY,
        "erdos_renyi": ORANGE,
        "erdos_renyi_kernel": BLUE,
    }
    for index, (distribution, color) in enumerate(styles.items()):
        topology = so.static(0.9, distribution=distribution)
        leaves = [
            leaf
            for leaf in so.plan(variables["params"], topology).leaves
            if leaf.layer is not None and leaf.active is not None
        ]
        heights = [leaf.active / np.prod(leaf.leaf.shape) for leaf in leaves]
        places = np.arange(len(leaves)) + 0.27 * (index - 1)
        axes.bar(places, heights, 0.25, color=color, label=distribution)
        labels = [
            f"{leaf.path.removesuffix('/kernel')}\n{_sizes(leaf.leaf.shape)}".replace(
                "/", "\n"
            )
            for leaf in leaves
        ]
        axes.set_xticks(range(len(leaves)), labels, fontsize=7)
    axes.set(ylabel="density", title="a sparsity of 0.9 under three distributions")
    axes.legend(frameon=False, fontsize=8)
    return _plain(figure)


def _sizes(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


PICTURES = {
    "neurons": neurons,
    "change": change,
    "amplification": amplification,
    "densities": densities,
}


def main(folder: Path = Path("docs/images")) -> None:
    """Draw all of them.

    Args:
      folder: receives one file for each, ``concept_<name>.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        file = folder / f"concept_{name}.png"
        picture().savefig(file, dpi=100, metadata={"Software": None})
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    tyro.cli(main)
