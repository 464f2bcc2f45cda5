# %% [markdown]
# # A topology that finds the pixels
#
# **RigL moves 53 % of the first layer's connections, and finds the pixels that
# matter**: of 68 connections from the 12 pixels that hardly ever change, 25 are left in
# the end, while the layer keeps its 490.
#
# ![Connections from each pixel](images/moving_topology.png)
#
# RigL drops the smallest weights and grows where the gradient is large. Scanned digits
# show where that leads: pixels that are the same in all images have no gradient.

# %%
import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import sparseopt_jax as so

# %% tags=["parameters"]
STEPS, EVERY = 800, 10

# %%
images, labels = load_digits(return_X_y=True)
images = images.astype(np.float32) / 16
model = nn.Sequential([nn.Dense(112), nn.relu, nn.Dense(10)])
apply_fn, init = jax.jit(model.apply), jax.jit(model.init)
params = init(jax.random.key(0), images[:1])["params"]


def loss_fn(params, batch):
    logits = apply_fn({"params": params}, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


# %% [markdown]
# `min_fan_in=2` keeps every neuron alive. Masks are part of the optimizer's state;
# `so.get_masks` returns them.

# %%
topology = so.rigl(
    0.9, every=EVERY, stop=3 * STEPS // 4, drop_fraction=0.5, min_fan_in=2
)
tx = so.sparsify(optax.adam(2e-3), topology)
state = so.linen.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
step = jax.jit(so.make_train_step(loss_fn))

frames = [jax.device_get(so.get_masks(state))]
losses, rng = [], np.random.default_rng(0)
for number in range(STEPS):
    rows = rng.integers(len(images), size=64)
    state, metrics = step(state, (images[rows], labels[rows]))
    losses.append(float(metrics["loss"]))
    if topology.due(number):
        frames.append(jax.device_get(so.get_masks(state)))
print(f"loss {np.mean(losses[-20:]):.3f}; {len(frames) - 1} updates of the masks")

# %% [markdown]
# How many connections leave each pixel? Every update keeps their total number.

# %%
layer, path = "layers_0", "layers_0/kernel"


def by_pixel(masks):
    return np.asarray(masks[layer]["kernel"]).sum(axis=1)


first, last = by_pixel(frames[0]), by_pixel(frames[-1])
still = images.std(axis=0) < 0.05  # pixels that hardly ever change
dropped = frames[0][layer]["kernel"] & ~frames[-1][layer]["kernel"]
print(f"connections: {first.sum()} at first, {last.sum()} in the end")
print(f"{dropped.sum() / first.sum():.0%} of them have moved")
print(f"{still.sum()} of 64 pixels hardly ever change")
before, after = first[still].sum(), last[still].sum()
print(f"connections from these: {before} at first, {after} in the end")

# %% tags=["result"]
figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.8), layout="constrained")
shown = {
    "mean of all digits": images.mean(axis=0),
    "connections at first": first,
    "connections in the end": last,
}
for place, (title, values) in zip(axes, shown.items(), strict=True):
    place.imshow(values.reshape(8, 8), cmap="Blues", vmin=0)
    place.set(title=title, xticks=[], yticks=[])

# %% [markdown]
# The mask itself, inputs by neurons, with the weights grown and dropped since the first
# one. `so.plot.animate_masks(frames, path, "moving.gif")` animates it.

# %%
so.plot.masks(frames[-1], path, frames[0])
