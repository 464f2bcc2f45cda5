"""Two networks that learn scanned digits with all methods, and their training."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from benchmarks.method_arms import Arm, When
from benchmarks.method_changes import begin, change
from examples.digits.model import ResNet
from examples.digits.training import (
    batches,
    evaluate,
    init,
    is_kernel,
    warmed_up_cosine,
)
from reporting import harness
from reporting.training import BATCH, loss_of
from sparseopt_jax.masks.state import is_sparse_state
from sparseopt_jax.topologies.methods.str_ import SoftThreshold


class EncoderBlock(nn.Module):
    """Attention and a hidden layer, each after a LayerNorm and added to its input.

    Attributes:
      heads: attention heads.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map (images, tokens, width) to the same shape."""
        width = x.shape[-1]
        split = (*x.shape[:-1], self.heads, width // self.heads)
        y = nn.LayerNorm()(x)
        query, key, value = (
            nn.Dense(width, name=name)(y).reshape(split)
            for name in ("query", "key", "value")
        )
        y = nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + nn.Dense(width, name="out")(y)
        y = nn.gelu(nn.Dense(2 * width, name="hidden_1")(nn.LayerNorm()(x)))
        return x + nn.Dense(width, name="hidden_2")(y)


class Transformer(nn.Module):
    """An encoder whose tokens are the rows of an image.

    Attributes:
      width: features of a token.
      blocks: number of blocks.
      heads: attention heads of each block.
      classes: number of classes.
    """

    width: int = 64
    blocks: int = 2
    heads: int = 4
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Return logits (n, classes) of images (n, rows, columns, 1)."""
        del train
        x = nn.Dense(self.width, name="stem")(images[..., 0])
        position = self.param(
            "position_embedding", nn.initializers.normal(0.02), x.shape[1:]
        )
        x = x + position
        for index in range(self.blocks):
            x = EncoderBlock(self.heads, name=f"block_{index + 1}")(x)
        x = jnp.mean(nn.LayerNorm()(x), axis=1)
        return nn.Dense(self.classes, name="head")(x)


class Task(NamedTuple):
    """A network, and how it is trained.

    Attributes:
      name: its name in tables.
      model: called with images and ``train``.
      optimizer: builds it from the number of steps.
    """

    name: str
    model: nn.Module
    optimizer: Callable[[int], optax.GradientTransformation]


def tasks(quick: bool) -> list[Task]:
    """Return both networks; if quick, only a tiny ResNet."""
    if quick:
        return [Task("ResNet", ResNet(4, strides=()), _sgd)]
    return [
        Task("ResNet", ResNet(16), _sgd),
        Task("Transformer", Transformer(), _adamw),
    ]


def _sgd(steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.add_decayed_weights(5e-4, mask=is_kernel),
        optax.sgd(warmed_up_cosine(0.1, steps), momentum=0.9),
    )


def _adamw(steps: int) -> optax.GradientTransformation:
    schedule = warmed_up_cosine(3e-3, steps)
    return optax.adamw(schedule, weight_decay=1e-2, mask=is_kernel)


class Outcome(NamedTuple):
    """The outcome of one training run.

    Attributes:
      accuracy: accuracy on the test images.
      density: fraction of active weights over all sparse kernels.
      state_bytes: bytes of the masks and of all other state that the method adds.
    """

    accuracy: float
    density: float
    state_bytes: int


class Trainer:
    """One method on one network, compiled once for all seeds.

    Attributes:
      label: the method's label.
      last: the final state of the last run; None before the first.
    """

    def __init__(self, task: Task, arm: Arm, epochs: int, data: tuple[Any, Any]):
        """Build the step; train nothing yet."""
        self.task, self.arm, self.epochs = task, arm, epochs
        self.label = arm.label
        self.train, self.test = data
        self.steps = epochs * (len(self.train.labels) // BATCH)
        self.when = When.of(self.steps)
        self.method = arm.build(self.when, misfits=True)
        self.inner = task.optimizer(self.steps)
        self.tx = self._tx(0)
        loss_fn = loss_of(task.model)
        if isinstance(self.method, SoftThreshold):
            loss_fn = _thresholded(loss_fn, self.method)
        step = so.make_train_step(loss_fn, has_batch_stats=True)
        self.step = jax.jit(
            lambda state, batch: step(state, batch)[0], donate_argnums=0
        )
        self.last: Any = None

    def run(self, seed: int) -> Outcome:
        """Train with one seed."""
        state = self._start(seed)
        draw = np.random.default_rng(seed)
        for batch in batches(self.train, self.epochs, draw, BATCH):
            state = self.step(state, batch)
        self.last = jax.block_until_ready(state)
        weights, density, kept = self._forward(state)
        variables = {"params": weights, "batch_stats": state.batch_stats}
        accuracy, _ = evaluate(self.task.model, variables, *self.test)
        return Outcome(float(accuracy), density, _bytes(kept))

    def steps_from_last(self, name: str, count: int) -> harness.Candidate:
        """Return blocks of steps that continue from the end of the last run.

        Masks are no longer updated by then, except those that follow every step.
        """
        state = jax.tree.map(jnp.copy, self.last)
        order = np.random.default_rng(0)
        cycle = itertools.cycle(
            [jax.device_put(batch) for batch in batches(self.train, 1, order, BATCH)]
        )

        def block():
            nonlocal state
            for batch in itertools.islice(cycle, count):
                state = self.step(state, batch)
            return state

        return harness.Candidate(name, block, count)

    def change_of_first(self) -> harness.Candidate:
        """Return an update of the first masks as one compiled program, not in place."""
        params = self._start(0).params
        draw = np.random.default_rng(1).standard_normal
        grads = jax.tree.map(
            lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), params
        )
        start = begin(self.method, params, grads, self.arm.change_at(self.when))
        compiled = jax.jit(functools.partial(change, self.method))
        return harness.Candidate(self.label, lambda: compiled(*start, grads))

    def _tx(self, key: Any) -> optax.GradientTransformation:
        if self.method is None or isinstance(self.method, SoftThreshold):
            return self.inner
        return so.sparsify(self.inner, self.method, key=key)

    def _start(self, seed: int) -> so.linen.TrainState:
        """Return the state before the first step, drawn from the seed."""
        # The default kind of key takes seconds to compile for each network on CPU.
        params_key, key = jax.random.split(jax.random.key(seed, impl="rbg"))
        variables = {"batch_stats": {}, **init(self.task.model, params_key)}
        params = variables["params"]
        if isinstance(self.method, SoftThreshold):
            thresholds = self.method.init(params)
            params = {"weights": params, "thresholds": thresholds}
        state = so.linen.TrainState.create(
            apply_fn=None,
            params=params,
            tx=self._tx(key),
            batch_stats=variables["batch_stats"],
        )
        # All seeds share one optimizer, or each would compile again.
        return state.replace(tx=self.tx)

    def _forward(self, state: so.linen.TrainState) -> tuple[Any, float, Any]:
        """Return the weights that the network uses, their density, and their bytes."""
        if self.method is None:
            return state.params, 1.0, ()
        if isinstance(self.method, SoftThreshold):
            both = (state.params["weights"], state.params["thresholds"])
            masks = self.method.masks(*both)
            return self.method(*both), _density(masks), both[1]
        sparse_state: Any = state.opt_state
        assert is_sparse_state(sparse_state)
        masks = so.get_masks(sparse_state)
        weights = so.apply_masks(state.params, masks)
        return (
            weights,
            _density(masks),
            (sparse_state.masks, sparse_state.topology_state),
        )


def _thresholded(loss_fn: Callable[..., Any], soft: SoftThreshold) -> Callable:
    """Return the loss of thresholded weights; weights and thresholds are trained."""

    def loss(both, *rest):
        return loss_fn(soft(both["weights"], both["thresholds"]), *rest)

    return loss


def _density(masks: Any) -> float:
    leaves = jax.tree.leaves(masks)
    return sum(int(mask.sum()) for mask in leaves) / sum(mask.size for mask in leaves)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
