"""Training of the ResNet on scanned digits: its optimizer, its steps, one arm."""

import collections
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import sparseopt_jax as so
from examples.digits.config import WEIGHT_DECAY, Arm, Config
from examples.digits.model import ResNet
from sparseopt_jax.topologies.rewiring import Rewiring

Correction = optax.GradientTransformationExtraArgs
IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)


def learning_rate(config: Config) -> optax.Schedule:
    """Return a linear warm-up over a tenth of the steps, then a cosine to almost 0."""
    return warmed_up_cosine(config.peak, config.epochs * config.steps_per_epoch)


def warmed_up_cosine(peak: float, steps: int) -> optax.Schedule:
    """Return ``learning_rate`` for a peak and a number of steps."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=steps // 10,
        decay_steps=steps,
        end_value=1e-3 * peak,
    )


def make_topology(config: Config, method: str) -> Rewiring:
    """Return the topology of a sparse method."""
    if method == "static":
        return so.static(config.sparsity, distribution=config.distribution)
    stop = max(1, 3 * config.epochs * config.steps_per_epoch // 4)
    # Update in the first step of an epoch, long before the evaluation, and also within
    # an epoch if that makes fewer than 20 updates.
    changes_per_epoch = math.ceil(20 * config.steps_per_epoch / stop)
    return {"set": so.set_, "rigl": so.rigl}[method](
        config.sparsity,
        every=max(1, config.steps_per_epoch // changes_per_epoch),
        stop=stop,
        distribution=config.distribution,
        track_explored=True,
    )


def abstract_variables(config: Config) -> Any:
    """Return shapes and dtypes of the network's variables; compute nothing."""
    return jax.eval_shape(
        functools.partial(init, ResNet(config.width)), jax.random.key(0)
    )


def make_correction(config: Config, correction: str) -> Correction:
    """Return the transformation that scales the gradient per neuron."""
    if correction == "fan_in":
        return so.scale_by_sparseopt()
    if correction == "batch_variance":
        links = so.infer_norm_links(
            ResNet(config.width).apply, abstract_variables(config), IMAGE, train=False
        )
        return so.scale_by_batch_variance(links)
    return optax.with_extra_args_support(optax.identity())


def make_optimizer(
    config: Config,
    method: str,
    correction: Correction,
    key: jax.typing.ArrayLike,
) -> optax.GradientTransformation:
    """Return the optimizer of one arm; SparseOpt's equals ``so.sparse_sgd``."""
    schedule = learning_rate(config)
    decay = optax.add_decayed_weights(WEIGHT_DECAY[config.optimizer], mask=is_kernel)
    if config.optimizer == "sgd":
        inner = optax.chain(correction, decay, optax.sgd(schedule, momentum=0.9))
    else:
        # Before Adam, its normalisation would cancel the correction.
        inner = optax.chain(
            optax.scale_by_adam(),
            correction,
            decay,
            optax.scale_by_learning_rate(schedule),
        )
    if method == "dense":
        return inner
    return so.sparsify(inner, make_topology(config, method), key=key)


def train_step(
    state: so.linen.TrainState, images: jax.Array, labels: jax.Array
) -> tuple[so.linen.TrainState, jax.Array]:
    """Take one step on one batch; return the next state and the loss."""

    def loss_fn(params):
        logits, variables = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), variables["batch_stats"]

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads = gradient(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


@functools.partial(jax.jit, static_argnames="model")
def init(model: nn.Module, key: jax.Array) -> Any:
    """Return the network's variables."""
    return model.init(key, jnp.zeros(IMAGE.shape, IMAGE.dtype), train=False)


@functools.partial(jax.jit, static_argnames="model")
def evaluate(
    model: nn.Module, variables: Any, images: Any, labels: Any
) -> tuple[jax.Array, jax.Array]:
    """Return accuracy and loss."""
    logits: Any = model.apply(variables, images, train=False)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return accuracy, cross_entropy(logits, labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy over the images."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def start(
    model: nn.Module, make: Callable[[jax.Array], Any], seed: int
) -> so.linen.TrainState:
    """Return the state before the first step, drawn from the seed.

    Args:
      model: the network.
      make: builds the optimizer from the key of the masks.
      seed: decides both.

    Returns:
      The state.
    """
    # The default kind of key takes seconds to compile for each network on CPU.
    params_key, key = jax.random.split(jax.random.key(seed, impl="rbg"))
    variables = {"batch_stats": {}, **init(model, params_key)}
    return so.linen.TrainState.create(apply_fn=model.apply, tx=make(key), **variables)


def batches(
    train: Any, epochs: int, draw: np.random.Generator, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the full batches of some epochs, each epoch in a new random order.

    Args:
      train: images and labels.
      epochs: number of epochs.
      draw: the random generator of the orders.
      size: images per batch.

    Yields:
      Images and labels of a batch.
    """
    for _ in range(epochs):
        order = draw.permutation(len(train.labels))
        for first in range(0, len(order) - size + 1, size):
            chosen = order[first : first + size]
            yield train.images[chosen], train.labels[chosen]


class Trainer:
    """Train one arm, compiled once for all its seeds."""

    def __init__(self, config: Config, arm: Arm, train: Any, test: Any):
        self.config, self.arm, self.train, self.test = config, arm, train, test
        self.model = ResNet(config.width)
        self.correction = make_correction(config, arm.correction)
        self.tx = make_optimizer(config, arm.method, self.correction, key=0)
        step = jax.jit(train_step, donate_argnums=0)
        batch = next(self._batches(np.random.default_rng()))
        self.step = step.lower(self._start(0), *batch).compile()

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """Train with one seed; yield a row for each epoch and one for the run."""
        identity = {**self.arm._asdict(), "label": self.arm.label, "seed": seed}
        state = self._start(seed)
        order = np.random.default_rng(seed)
        curves = collections.defaultdict(list)
        seconds = []
        for epoch in range(1, self.config.epochs + 1):
            losses = []
            for images, labels in self._batches(order):
                started = time.perf_counter()
                state, loss = jax.block_until_ready(self.step(state, images, labels))
                seconds.append(time.perf_counter() - started)
                losses.append(float(loss))
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            accuracy, loss = evaluate(self.model, variables, *self.test)
            row = {
                "train_loss": float(np.mean(losses)),
                "test_loss": float(loss),
                "test_accuracy": float(accuracy),
            }
            for name, value in row.items():
                curves[name].append(value)
            yield {"event": "epoch", **identity, "epoch": epoch, **row}
        yield {
            "event": "run",
            **identity,
            "ms_per_step": 1e3 * float(np.median(seconds)),
            **self._sparsity(state),
            "curves": dict(curves),
        }

    def _start(self, seed: int) -> so.linen.TrainState:
        """Return the state before the first step, drawn from the seed."""
        make = functools.partial(
            make_optimizer, self.config, self.arm.method, self.correction
        )
        # All seeds share one optimizer, or each would compile again: the seed's masks
        # and key are data in the optimizer's state.
        return start(self.model, make, seed).replace(tx=self.tx)

    def _batches(
        self, order: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the full batches of one epoch, in random order."""
        return batches(self.train, 1, order, self.config.batch_size)

    def _sparsity(self, state: so.linen.TrainState) -> dict[str, Any]:
        """Describe the masks at the end of a run."""
        if self.arm.method == "dense":
            return {"explored": 1.0, "layers": []}
        numbers = jax.jit(so.metrics)(state.params, state.opt_state)
        masks = so.get_masks(state.opt_state)
        # The correction maps a gradient of ones to its factors.
        factors, _ = self.correction.update(
            jax.tree.map(jnp.ones_like, state.params),
            self.correction.init(state.params),
            state.params,
            masks=masks,
            batch_stats=state.batch_stats,
        )
        return {
            "explored": float(numbers.get("explored", numbers["density"])),
            "layers": [
                {
                    "path": path,
                    "size": mask.size,
                    "fan_in": per_neuron(mask).sum(axis=0).tolist(),
                    "factor": per_neuron(factor)[0].tolist(),
                }
                for (path, mask), factor in zip(
                    traverse_util.flatten_dict(masks, sep="/").items(),
                    traverse_util.flatten_dict(factors).values(),
                    strict=True,
                )
                if isinstance(mask, jax.Array)
            ],
        }


def per_neuron(kernel: Any) -> np.ndarray:
    """Return a kernel as (inputs, neurons), on the host."""
    return np.asarray(kernel).reshape(-1, kernel.shape[-1])


def is_kernel(params: Any) -> Any:
    """Return a tree of bools: the leaves that weight decay applies to."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
