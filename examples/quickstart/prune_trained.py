"""Prune a trained network, and fine-tune the remaining weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import sparseopt_jax as so

EPOCHS, FINE_TUNING, BATCH = 12, 4, 64
SPARSITIES = (0.5, 0.8, 0.9)


class Net(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x):
        for width in (128, 128):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def train(model, params, tx, data, epochs):
    """Train with a plain loop, the same with and without masks."""
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state, images, labels):
        def loss_fn(params):
            logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        updates, opt_state = tx.update(jax.grad(loss_fn)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(data[0]))
        for batch in order[: len(order) // BATCH * BATCH].reshape(-1, BATCH):
            params, opt_state = step(params, opt_state, *(x[batch] for x in data))
    return params


def main():
    """Prune by four criteria, refine and fine-tune one result, and print accuracies."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=600, stratify=labels, random_state=0
    )
    model = Net()
    params = model.init(jax.random.key(0), test_x[:1])["params"]
    params = train(model, params, optax.adam(2e-3), (train_x, train_y), EPOCHS)

    def accuracy(params):
        logits = jnp.asarray(model.apply({"params": params}, test_x))
        return f"{jnp.mean(logits.argmax(-1) == test_y):.1%}"

    print(f"dense: {accuracy(params)}")
    # What Wanda and SparseGPT know of the data: a few batches, without labels.
    batches = np.split(train_x[:512], 8)
    calibration = so.calibrate(model.apply, {"params": params}, batches)

    table = Table("", *(f"{sparsity:.0%} zeros" for sparsity in SPARSITIES))
    for method in ("random", "magnitude", "wanda", "sparsegpt"):
        cells = (
            accuracy(
                so.prune(
                    params, method, sparsity=sparsity, calibration=calibration
                ).params
            )
            for sparsity in SPARSITIES
        )
        table.add_row(method, *cells)

    refined, tuned = [], []
    for sparsity in SPARSITIES:
        pruned = so.prune(params, "wanda", sparsity=sparsity, calibration=calibration)
        better = so.dsnot(*pruned, calibration, params)
        refined.append(accuracy(better.params))
        # The masks stay fixed, and inactive weights are exactly zero after every step.
        tx = so.sparsify(optax.adam(1e-3), so.static(masks=better.masks))
        data = train_x, train_y
        tuned.append(accuracy(train(model, better.params, tx, data, FINE_TUNING)))
    table.add_row("wanda, then DSnoT", *refined)
    table.add_row(f"and {FINE_TUNING} more epochs", *tuned)
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
