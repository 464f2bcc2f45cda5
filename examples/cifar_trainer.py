"""A network, its optimizer and its data on one device, compiled for several seeds.

All arrays of a state have the seeds as their first axis, also where there is one only.
What a step sees is decided by the seed and the number of the step, so that a training
that was stopped goes on as if it had not been.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cifar_config import Config
from cifar_recipes import learning_rate, make_optimizer, make_topology, total_steps
from common.augment import augmented
from common.cifar_data import Dataset
from common.resnets import NETWORKS

import sparseopt_jax as so

EVALUATED_AT_ONCE = 500


class Split(NamedTuple):
    """Images and labels on the device, as many of one as of the other.

    Attributes:
      images: uint8 (n, size, size, 3).
      labels: int32 (n,).
    """

    images: Any
    labels: Any


class Sums(NamedTuple):
    """What is summed up over images or steps.

    Attributes:
      loss: float32 (seeds,).
      accuracy: float32 (seeds,).
    """

    loss: Any
    accuracy: Any


class Run(NamedTuple):
    """A training in progress, all of it that a checkpoint keeps.

    Attributes:
      state: weights, statistics and the optimizer's state of all seeds.
      sums: over the steps of the epoch so far.
    """

    state: so.linen.TrainState
    sums: Sums


class Trainer:
    """What is trained, and how, compiled once for all groups of as many seeds.

    Attributes:
      recipe: how.
      per_epoch: steps in an epoch; images left over are left out of it.
      total: steps in the run.
      topology: None for a dense network.
      plan: what is sparse; None for a dense network.
      weights: number of parameters.
      schedule: the learning rate of each step.
    """

    def __init__(self, config: Config, dataset: Dataset, *, together: int, loop: bool):
        """Prepares a run; nothing is computed yet.

        Args:
          config: what was asked for.
          dataset: what to train on.
          together: how many seeds are trained at once.
          loop: whether steps are taken in a compiled loop.

        Raises:
          ValueError: if the images or the sparsity do not fit.
        """
        self.recipe = recipe = config.chosen
        self.per_epoch = len(dataset.train_labels) // recipe.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f"batch_size must be at most {len(dataset.train_labels)}, the number "
                f"of training images, got {recipe.batch_size}"
            )
        self.total = total_steps(recipe, self.per_epoch)
        self.schedule = learning_rate(recipe, self.per_epoch)
        self.topology = make_topology(recipe, self.per_epoch)
        due = self.topology.due(np.arange(self.total)) if self.topology else False
        self._changes = np.flatnonzero(due)
        self._together, self._loop = together, loop
        self._drawn: tuple[Any, Any] = (None, None)
        self._dataset = dataset
        self._mean, self._deviation = dataset.moments()
        self.model = NETWORKS[recipe.network](
            width=recipe.width,
            blocks=recipe.blocks,
            classes=dataset.classes,
            dtype=jnp.dtype(config.dtype),
            dropout=recipe.dropout,
        )
        key = jax.random.key(0)
        variables = jax.eval_shape(self._variables, key)
        self.weights = sum(
            math.prod(x.shape) for x in jax.tree.leaves(variables["params"])
        )
        self.plan = self.topology and so.plan(variables["params"], self.topology)
        self._correction = self._make_correction(variables)
        # All seeds share one optimizer, or each would compile anew: the masks and the
        # key that a seed decides are data, in the optimizer's state.
        self._tx = self._make_optimizer(key)
        self.train = jax.device_put(Split(dataset.train_images, dataset.train_labels))
        self.test = jax.device_put(Split(dataset.test_images, dataset.test_labels))

        of_all = functools.partial(_over_seeds, count=together)
        step = of_all(functools.partial(self._step, change=False))
        self._one = jax.jit(step, donate_argnums=0)
        self._change = jax.jit(
            of_all(functools.partial(self._step, change=True)), donate_argnums=0
        )
        # The number of steps is an argument, which `scan` would not allow: one program
        # runs from any step to any other, whatever lies between two changes.
        self._many = jax.jit(
            lambda run, keys, orders, train, count: jax.lax.fori_loop(
                0, count, lambda _, run: step(run, keys, orders, train), run
            ),
            donate_argnums=0,
        )
        count = of_all(self._count)
        self._evaluate_one = jax.jit(count)
        self._evaluate_all = jax.jit(
            lambda sums, state, test, firsts: jax.lax.fori_loop(
                0,
                len(firsts),
                lambda i, sums: count(sums, state, (firsts[i], test)),
                sums,
            )
        )
        self._sparsity = jax.jit(of_all(lambda state, _: _numbers(state)))
        self._create = jax.jit(self._begin)

    def start(self, seeds: Sequence[int]) -> Run:
        """The states before the first step, weights and masks drawn from the seeds.

        One seed after another by the same program, whichever are trained together: they
        begin with the same weights, to the last bit.
        """
        # The default kind of key compiles for half a minute on CPU.
        states = [self._create(jax.random.key(seed, impl="rbg")) for seed in seeds]
        if self.topology:
            # What grows is drawn from it under vmap, where the other kind draws
            # otherwise than without.
            states = [
                state.replace(opt_state=state.opt_state._replace(key=_keys(seed)[0]))
                for state, seed in zip(states, seeds, strict=True)
            ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return Run(stacked, _zeros(len(seeds)))

    def advance(self, run: Run, seeds: Sequence[int], step: int) -> tuple[Run, int]:
        """Some steps on: at most to the end of the epoch.

        Args:
          run: after ``step`` steps; it is used up.
          seeds: whose run it is.
          step: how many steps it has taken.

        Returns:
          The run, and how many steps it has taken now.
        """
        epoch, place = divmod(step, self.per_epoch)
        if place == 0:
            run = run._replace(sums=_zeros(len(seeds)))
        arguments = (run, *self._draw(tuple(seeds), epoch), self.train)
        until = min(step - place + self.per_epoch, self.total)
        changes = self._changes[np.searchsorted(self._changes, step) :]
        if step in changes[:1]:
            run, until = self._change(*arguments), step + 1
        elif self._loop:
            until = min([until, *changes[:1].tolist()])
            run = self._many(*arguments, until - step)
        else:
            run, until = self._one(*arguments), step + 1
        return jax.block_until_ready(run), until

    def evaluate(self, state: so.linen.TrainState) -> dict[str, np.ndarray]:
        """Loss and accuracy over all test images, for each seed: (seeds,)."""
        images = len(self.test.labels)
        sums = _zeros(self._together)
        firsts = np.arange(0, images, EVALUATED_AT_ONCE, dtype=np.int32)
        if self._loop:
            sums = self._evaluate_all(sums, state, self.test, firsts)
        else:
            for first in firsts:
                sums = self._evaluate_one(sums, state, (first, self.test))
        return {name: x / images for name, x in jax.device_get(sums)._asdict().items()}

    def sparsity(self, state: so.linen.TrainState) -> dict[str, np.ndarray]:
        """What has become of the masks, as ``so.metrics`` has it, for each seed."""
        return jax.device_get(self._sparsity(state, ())) if self.topology else {}

    def _step(
        self, run: Run, key: jax.Array, order: jax.Array, train: Split, *, change: bool
    ) -> Run:
        """One step of one seed, with or without a change of the topology."""
        state = run.state
        images, labels, dropout_key = self._batch(key, order, train, state.step)

        def loss_fn(params):
            logits, variables = self.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                self._normalized(images),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            loss = jnp.mean(_losses(logits, labels))
            return loss, (variables["batch_stats"], jnp.mean(_right(logits, labels)))

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, accuracy)), grads = gradient(state.params)
        replaces = change and self.topology and self.topology.replaces_step
        if change and replaces:  # RigL: the step that follows moves no weight
            state = self._changed(state, grads)
        state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        if change and not replaces:  # SET
            state = self._changed(state, grads)
        return Run(state, Sums(run.sums.loss + loss, run.sums.accuracy + accuracy))

    def _batch(
        self, key: jax.Array, order: jax.Array, train: Split, step: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What a step of one seed sees: images, labels, and the key of its dropout."""
        size = self.recipe.batch_size
        first = step % self.per_epoch * size
        rows = jax.lax.dynamic_slice(order, [first], [size])
        crop_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
        images = augmented(
            crop_key,
            train.images[rows],
            margin=self._dataset.margin,
            padding=self.recipe.padding,
            flip=self._dataset.flips,
        )
        return images, train.labels[rows], dropout_key

    def _changed(self, state: so.linen.TrainState, grads: Any) -> so.linen.TrainState:
        opt_state, params = so.update_topology(
            self._tx, grads, state.opt_state, state.params
        )
        return state.replace(opt_state=opt_state, params=params)

    def _count(
        self, sums: Sums, state: so.linen.TrainState, place_and_test: tuple[Any, Split]
    ) -> Sums:
        """Adds what a batch of test images gives; the last may be a part of one."""
        first, test = place_and_test
        images = len(test.labels)
        rows = first + jnp.arange(min(EVALUATED_AT_ONCE, images))
        own = rows < images
        rows = jnp.minimum(rows, images - 1)
        logits: Any = self.model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            self._normalized(test.images[rows]),
            train=False,
        )
        labels = test.labels[rows]
        return Sums(
            sums.loss + jnp.sum(jnp.where(own, _losses(logits, labels), 0.0)),
            sums.accuracy + jnp.sum(own & _right(logits, labels)),
        )

    def _normalized(self, images: jax.Array) -> jax.Array:
        return ((images - self._mean) / self._deviation).astype(self.model.dtype)

    def _begin(self, key: jax.Array) -> so.linen.TrainState:
        params_key, topology_key = jax.random.split(key)
        variables = self._variables(params_key)
        state = so.linen.TrainState.create(
            apply_fn=None,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=self._make_optimizer(topology_key),
        )
        return state.replace(tx=self._tx)

    def _variables(self, key: jax.Array) -> Any:
        image = jnp.zeros((1, *self._dataset.train_images.shape[1:]), self.model.dtype)
        return self.model.init(key, image, train=False)

    def _make_correction(self, variables: Any) -> optax.GradientTransformation:
        if self.recipe.correction == "fan_in":
            return so.scale_by_sparseopt()
        if self.recipe.correction == "batch_variance":
            shape = (1, *self._dataset.train_images.shape[1:])
            image = jax.ShapeDtypeStruct(shape, self.model.dtype)
            links = so.infer_norm_links(self.model.apply, variables, image, train=False)
            return so.scale_by_batch_variance(links)
        return optax.with_extra_args_support(optax.identity())

    def _make_optimizer(self, key: jax.Array) -> optax.GradientTransformation:
        return make_optimizer(self.recipe, self.per_epoch, self._correction, key=key)

    def _draw(self, seeds: tuple[int, ...], epoch: int) -> tuple[jax.Array, jax.Array]:
        """What decides an epoch, for each seed.

        Args:
          seeds: the seeds.
          epoch: its number, from 0.

        Returns:
          Keys of the augmentation (seeds,) and the order of the images, int32 (seeds,
          images).
        """
        if self._drawn[0] != (seeds, epoch):
            count = len(self._dataset.train_labels)
            orders = [
                np.random.default_rng([seed, epoch]).permutation(count)
                for seed in seeds
            ]
            keys = jnp.stack([_keys(seed)[1] for seed in seeds])
            drawn = (keys, jnp.asarray(np.stack(orders), jnp.int32))
            self._drawn = ((seeds, epoch), drawn)
        return self._drawn[1]


def _over_seeds(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A function over the first axis of all its arguments but the last.

    A single seed goes without ``vmap``, which turns convolutions into grouped ones.
    """

    def mapped(*arguments):
        *own, shared = arguments
        if count > 1:
            in_axes = (*[0] * len(own), None)
            return jax.vmap(function, in_axes=in_axes)(*own, shared)
        result = function(*jax.tree.map(lambda x: x[0], own), shared)
        return jax.tree.map(lambda x: x[None], result)

    return mapped


def _numbers(state: so.linen.TrainState) -> dict[str, jax.Array]:
    return so.metrics(state.params, state.opt_state)


def _zeros(seeds: int) -> Sums:
    return Sums(jnp.zeros(seeds), jnp.zeros(seeds))


def _keys(seed: int) -> jax.Array:
    """The keys of what a seed's topology grows, and of its augmentation."""
    # Of the kind that draws the same under vmap, and on every backend.
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"))


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1) == labels
