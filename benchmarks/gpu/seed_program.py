"""One run of a seed and a correction: pure functions, to be mapped over many runs.

The runs differ only in arguments, so all of them share one program: the seed, the
correction, and the total number of steps.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from examples.cifar.data import Dataset
from examples.cifar.resnets import ResNet
from examples.common.augment import augmented

CORRECTIONS = ("none", "fan_in", "batch_variance")
EVALUATED = 500
RATE, MOMENTUM, DECAY, WARM_UP = 0.1, 0.9, 5e-4, 0.05
UPDATED = 0.75  # fraction of the training after which the masks are frozen
STOP = 10_000  # length of the topology's schedule, whatever the length of a run


class Run(NamedTuple):
    """One run of a seed and a correction.

    Attributes:
      state: weights, statistics and the optimizer's state.
      correction: int32, its index in ``CORRECTIONS``.
      key: key of its batches and their augmentation.
    """

    state: so.linen.TrainState
    correction: jax.Array
    key: jax.Array


def choose(
    corrections: tuple[optax.GradientTransformationExtraArgs, ...],
) -> optax.GradientTransformationExtraArgs:
    """Choose one of several stateless transformations by an argument of the update."""

    def init_fn(params):
        del params
        return optax.EmptyState()

    def update_fn(updates, state, params=None, *, correction: Any = None, **extra_args):
        ways = [updates]
        for tx in corrections:
            ways.append(tx.update(updates, tx.init({}), params, **extra_args)[0])
        chosen = jax.tree.map(
            lambda *leaves: jax.lax.select_n(correction, *leaves), *ways
        )
        return chosen, state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Scale by a rate passed as argument, so that a run's length is not compiled in."""

    def init_fn(params):
        del params
        return optax.EmptyState()

    def update_fn(
        updates, state, params=None, *, learning_rate: Any = None, **extra_args
    ):
        del params, extra_args
        return jax.tree.map(lambda u: -learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class Program:
    """Pure functions of one run, to be mapped over all.

    Attributes:
      sparsity: sparsity of all runs.
    """

    def __init__(
        self, dataset: Dataset, sparsity: float, *, width: int, blocks: int, batch: int
    ):
        """Prepare the functions; compute nothing yet."""
        self.sparsity, self._batch = sparsity, batch
        self._margin, self._flips = dataset.margin, dataset.flips
        self._moments = dataset.moments()
        self._images = len(dataset.train_labels)
        self._model = ResNet(width, blocks, dataset.classes)
        self._image = jnp.zeros((1, *dataset.train_images.shape[1:]))
        variables = jax.eval_shape(self._variables, jax.random.key(0))
        links = so.infer_norm_links(
            self._model.apply, variables, self._image, train=False
        )
        corrections = (so.scale_by_sparseopt(), so.scale_by_batch_variance(links))
        self._inner = optax.chain(
            choose(corrections),
            optax.add_decayed_weights(
                DECAY, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
            ),
            optax.trace(MOMENTUM),
            scale_by_given_rate(),
        )
        self._topology = so.rigl(sparsity, every=1, stop=STOP)
        self._tx = self._optimizer(0)

    def begin(self, seed: jax.Array, correction: jax.Array) -> Run:
        """Return a run before its first step."""
        keys = jax.random.split(jax.random.key(seed), 3)
        variables = self._variables(keys[0])
        state = so.linen.TrainState.create(
            apply_fn=None,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=self._optimizer(keys[1]),
        )
        return Run(state.replace(tx=self._tx), correction, keys[2])

    def many(self, run: Run, train: Any, count: jax.Array, total: jax.Array) -> Run:
        """Return the run after ``count`` more of its ``total`` steps."""

        def step(_, run: Run) -> Run:
            grads, batch_stats = self._gradient(run, train)
            share = run.state.step / total
            falling = 0.5 * RATE * (1.0 + jnp.cos(jnp.pi * share))
            state = run.state.apply_gradients(
                grads=grads,
                batch_stats=batch_stats,
                correction=run.correction,
                learning_rate=jnp.minimum(1.0, share / WARM_UP) * falling,
            )
            return run._replace(state=state)

        return jax.lax.fori_loop(0, count, step, run)

    def update(self, run: Run, train: Any, total: jax.Array) -> Run:
        """Return the run after an update of its masks, which changes no weight."""
        grads, _ = self._gradient(run, train)
        state = run.state
        opt_state: Any = state.opt_state
        # The position of the run in the topology's schedule.
        place = jnp.int32(STOP * state.step / (UPDATED * total))
        there = opt_state._replace(count=jnp.minimum(place, STOP - 1))
        there, params = so.update_topology(
            self._tx,
            grads,
            there,
            state.params,
            correction=run.correction,
            learning_rate=jnp.float32(RATE),
        )
        # The next step must change weights: this update replaced RigL's step.
        topology_state = there.topology_state._replace(updated_at=jnp.int32(-1))
        back = there._replace(count=opt_state.count, topology_state=topology_state)
        return run._replace(state=state.replace(opt_state=back, params=params))

    def right(self, run: Run, test: Any) -> jax.Array:
        """Count the test images that a run classifies correctly."""
        images, labels = test
        size = min(EVALUATED, len(labels))

        def count(index, total):
            rows = index * size + jnp.arange(size)
            logits: Any = self._model.apply(
                {"params": run.state.params, "batch_stats": run.state.batch_stats},
                self._normalized(images[rows]),
                train=False,
            )
            return total + jnp.sum(jnp.argmax(logits, axis=-1) == labels[rows])

        return jax.lax.fori_loop(0, len(labels) // size, count, jnp.int32(0))

    def _gradient(self, run: Run, train: Any) -> tuple[Any, Any]:
        images, labels = train
        key = jax.random.fold_in(run.key, run.state.step)
        rows_key, crop_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (self._batch,), 0, self._images)
        seen = augmented(
            crop_key,
            images[rows],
            margin=self._margin,
            padding="zeros",
            flip=self._flips,
        )

        def loss_fn(params):
            logits, changed = self._model.apply(
                {"params": params, "batch_stats": run.state.batch_stats},
                self._normalized(seen),
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, labels[rows]
            )
            return jnp.mean(losses), changed["batch_stats"]

        return jax.grad(loss_fn, has_aux=True)(run.state.params)

    def _normalized(self, images: jax.Array) -> jax.Array:
        mean, deviation = self._moments
        return (images - mean) / deviation

    def _variables(self, key: jax.Array) -> Any:
        return self._model.init(key, self._image, train=False)

    def _optimizer(self, key: Any) -> optax.GradientTransformation:
        return so.sparsify(self._inner, self._topology, key=key, host_updates=True)
