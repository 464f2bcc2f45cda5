"""A network, its optimizer and its data on one device, compiled for several seeds.

All arrays of a state have the seeds as their first axis, even for a single seed. The
seed and the number of the step decide what a step sees, so an interrupted training
resumes bit for bit.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from examples.cifar.config import Config
from examples.cifar.data import Dataset
from examples.cifar.recipes import learning_rate, total_steps
from examples.cifar.step import EVALUATED_AT_ONCE, Program, Run, Split, Sums


class Trainer:
    """The training, compiled once for all groups with the same number of seeds.

    Attributes:
      recipe: the recipe.
      images: number of training images.
      per_epoch: steps in an epoch; images that do not fill a batch are left out.
      total: steps in the run.
      program: the computations for each seed.
      topology: None for a dense network.
      changes: the steps that update the masks.
      plan: the plan of the sparse layers; None for a dense network.
      weights: number of parameters.
      schedule: the learning rate of each step.
    """

    def __init__(self, config: Config, dataset: Dataset, *, together: int, loop: bool):
        """Prepare a run; compute nothing yet.

        Args:
          config: the options.
          dataset: the data set to train on.
          together: number of seeds trained at once.
          loop: whether steps run in a compiled loop.

        Raises:
          ValueError: if the images or the sparsity do not fit.
        """
        self.recipe = recipe = config.chosen
        self.images = len(dataset.train_labels)
        self.per_epoch = self.images // recipe.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f"batch_size must be at most {self.images}, the number of training "
                f"images, got {recipe.batch_size}"
            )
        self.total = total_steps(recipe, self.per_epoch)
        self.schedule = learning_rate(recipe, self.per_epoch)
        self.program = program = Program(config, dataset, self.per_epoch)
        self.topology = program.topology
        params = program.shapes["params"]
        self.weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
        self.plan = self.topology and so.plan(params, self.topology)
        due = self.topology.due(np.arange(self.total)) if self.topology else False
        self.changes = np.flatnonzero(due)
        self._together, self._loop = together, loop
        self._drawn: tuple[Any, Any] = (None, None)
        self.train = jax.device_put(Split(dataset.train_images, dataset.train_labels))
        self.test = jax.device_put(Split(dataset.test_images, dataset.test_labels))

        of_all = functools.partial(_over_seeds, count=together)
        step = of_all(functools.partial(program.step, change=False))
        self._one = jax.jit(step, donate_argnums=0)
        self._change = jax.jit(
            of_all(functools.partial(program.step, change=True)), donate_argnums=0
        )
        # The number of steps is an argument, which `scan` would not allow: one program
        # runs from any step to any other, whatever the interval between two updates.
        self._many = jax.jit(
            lambda run, keys, orders, train, count: jax.lax.fori_loop(
                0, count, lambda _, run: step(run, keys, orders, train), run
            ),
            donate_argnums=0,
        )
        count = of_all(program.count)
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
        self._create = jax.jit(program.begin)

    def start(self, seeds: Sequence[int]) -> Run:
        """Return the states before the first step, drawn from the seeds.

        The same program draws one seed after another, so a seed starts with the same
        weights, bit for bit, whichever seeds are trained together.
        """
        # The default kind of key takes half a minute to compile on CPU.
        states = [self._create(jax.random.key(seed, impl="rbg")) for seed in seeds]
        if self.topology:
            # Growth draws from it under vmap, where the other kind draws different
            # numbers than without vmap.
            states = [
                state.replace(opt_state=state.opt_state._replace(key=_keys(seed)[0]))
                for state, seed in zip(states, seeds, strict=True)
            ]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return Run(stacked, _zeros(len(seeds)))

    def advance(self, run: Run, seeds: Sequence[int], step: int) -> tuple[Run, int]:
        """Take several steps, at most to the end of the epoch.

        Args:
          run: the run after ``step`` steps; it is donated.
          seeds: its seeds.
          step: the number of steps taken.

        Returns:
          The run, and its new number of steps.
        """
        epoch, place = divmod(step, self.per_epoch)
        if place == 0:
            run = run._replace(sums=_zeros(len(seeds)))
        arguments = (run, *self.draw(tuple(seeds), epoch), self.train)
        until = min(step - place + self.per_epoch, self.total)
        changes = self.changes[np.searchsorted(self.changes, step) :]
        if step in changes[:1]:
            run, until = self._change(*arguments), step + 1
        elif self._loop:
            until = min([until, *changes[:1].tolist()])
            run = self._many(*arguments, until - step)
        else:
            run, until = self._one(*arguments), step + 1
        return jax.block_until_ready(run), until

    def evaluate(self, state: so.linen.TrainState) -> dict[str, np.ndarray]:
        """Return loss and accuracy over all test images, for each seed: (seeds,)."""
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
        """Return ``so.metrics`` of each seed."""
        return jax.device_get(self._sparsity(state, ())) if self.topology else {}

    def draw(self, seeds: tuple[int, ...], epoch: int) -> tuple[jax.Array, jax.Array]:
        """Draw the random numbers of an epoch, for each seed.

        Args:
          seeds: the seeds.
          epoch: its number, from 0.

        Returns:
          Keys of the augmentation (seeds,) and the order of the images, int32 (seeds,
          images).
        """
        if self._drawn[0] != (seeds, epoch):
            orders = [
                np.random.default_rng([seed, epoch]).permutation(self.images)
                for seed in seeds
            ]
            keys = jnp.stack([_keys(seed)[1] for seed in seeds])
            drawn = (keys, jnp.asarray(np.stack(orders), jnp.int32))
            self._drawn = ((seeds, epoch), drawn)
        return self._drawn[1]


def _over_seeds(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Map a function over the first axis of all its arguments but the last.

    A single seed runs without ``vmap``, which makes convolutions grouped.
    """

    def mapped(*arguments):
        *stacked, shared = arguments
        if count > 1:
            in_axes = (*[0] * len(stacked), None)
            return jax.vmap(function, in_axes=in_axes)(*stacked, shared)
        result = function(*jax.tree.map(lambda x: x[0], stacked), shared)
        return jax.tree.map(lambda x: x[None], result)

    return mapped


def _numbers(state: so.linen.TrainState) -> dict[str, jax.Array]:
    return so.metrics(state.params, state.opt_state)


def _zeros(seeds: int) -> Sums:
    return Sums(jnp.zeros(seeds), jnp.zeros(seeds))


def _keys(seed: int) -> jax.Array:
    """Return the keys of a seed's topology and of its augmentation."""
    # A kind of key that draws the same under vmap and on every backend.
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"))
