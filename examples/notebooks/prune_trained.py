# %% [markdown]
# # Prune a trained network
#
# **Without any training, SparseGPT prunes this network to 80 % zeros at an accuracy of
# 95.2 %**; the dense network has 96.8 % (600 test images). At 90 % zeros nothing
# replaces training: four epochs bring magnitude pruning from 22.2 % to 82.7 %, where
# SparseGPT has 64.0 %.
#
# ![Accuracy against zeros](images/prune_trained.png)
#
# A dense network is trained once. Its weights are then pruned by magnitude, and with
# some unlabelled inputs by Wanda and SparseGPT. Finally the magnitude-pruned networks
# are fine-tuned with their masks fixed. One seed.

# %%
import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sparseopt_jax as so

# %% tags=["parameters"]
EPOCHS, FINE_TUNING, BATCH = 12, 4, 64
SPARSITIES = (0.5, 0.7, 0.8, 0.9)

# %%
images, labels = load_digits(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(
    images.astype(np.float32) / 16,
    labels,
    test_size=600,
    stratify=labels,
    random_state=0,
)
model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(128), nn.relu, nn.Dense(10)])
apply_fn = jax.jit(model.apply)


def loss_fn(params, images, labels):
    logits = apply_fn({"params": params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(params):
    return float((apply_fn({"params": params}, test_x).argmax(-1) == test_y).mean())


# %%
def train(params, tx, epochs):
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, images, labels):
        grads = jax.grad(loss_fn)(params, images, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(train_x))
        for rows in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            params, opt_state = step(params, opt_state, train_x[rows], train_y[rows])
    return params


params = jax.jit(model.init)(jax.random.key(0), test_x[:1])["params"]
params = train(params, optax.adam(2e-3), EPOCHS)
dense = accuracy(params)
print(f"dense: {dense:.1%} of {len(test_x)} test images")

# %% [markdown]
# Wanda and SparseGPT need the size of the inputs of every kernel: `so.calibrate` runs
# the model on a few batches, without labels.

# %%
batches = np.split(train_x[:512], 8)
calibration = so.calibrate(model.apply, {"params": params}, batches)
curves = {"magnitude": [], "wanda": [], "sparsegpt": [], "magnitude, fine-tuned": []}
for sparsity in SPARSITIES:
    for method in ("magnitude", "wanda", "sparsegpt"):
        pruned = so.prune(params, method, sparsity=sparsity, calibration=calibration)
        curves[method].append(accuracy(pruned.params))

# %% [markdown]
# Fine-tuning with `so.static(masks=...)`: the masks stay fixed, and inactive weights
# are exactly zero after every step.

# %%
for sparsity in SPARSITIES:
    pruned = so.prune(params, "magnitude", sparsity=sparsity)
    tx = so.sparsify(optax.adam(1e-3), so.static(masks=pruned.masks))
    tuned = train(pruned.params, tx, FINE_TUNING)
    left = sum(int((x != 0).sum()) for x in jax.tree.leaves(so.masks_of(tuned)))
    assert left <= sum(int(x.sum()) for x in jax.tree.leaves(pruned.masks))
    curves["magnitude, fine-tuned"].append(accuracy(tuned))

print(f"{'zeros':22}", *(f"{x:6.0%}" for x in SPARSITIES))
for name, found in curves.items():
    print(f"{name:22}", *(f"{x:6.1%}" for x in found))

# %% tags=["result"]
figure, axes = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
axes.axhline(100 * dense, color="black", label="dense")
colors = ("#999999", "#E69F00", "#009E73", "#0072B2")
for (name, found), color in zip(curves.items(), colors, strict=True):
    axes.plot(SPARSITIES, 100 * np.array(found), marker="o", color=color, label=name)
axes.set(xlabel="fraction of zeros", ylabel="test accuracy (%)")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Wanda and SparseGPT were made for language models, which are too large to retrain.
# `structure=so.NM(2, 4)` makes any of these methods prune two weights in four.
