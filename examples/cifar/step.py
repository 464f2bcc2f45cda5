"""The computations for one seed: its first state, a step, a batch of the evaluation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from examples.cifar.config import Config
from examples.cifar.data import Dataset
from examples.cifar.recipes import make_optimizer, make_topology
from examples.cifar.resnets import NETWORKS
from examples.common.augment import augmented

EVALUATED_AT_ONCE = 500


class Split(NamedTuple):
    """Images and their labels, on the device.

    Attributes:
      images: uint8 (n, size, size, 3).
      labels: int32 (n,).
    """

    images: Any
    labels: Any


class Sums(NamedTuple):
    """Sums over images or steps.

    Attributes:
      loss: float32 (seeds,).
      accuracy: float32 (seeds,).
    """

    loss: Any
    accuracy: Any


class Run(NamedTuple):
    """A training in progress, with everything that a checkpoint keeps.

    Attributes:
      state: weights, statistics and the optimizer's state of all seeds.
      sums: sums over the steps of the epoch so far.
    """

    state: so.linen.TrainState
    sums: Sums


class Program:
    """Pure functions of arrays, to be compiled for one seed or for several.

    Attributes:
      recipe: the recipe.
      per_epoch: steps in an epoch.
      topology: None for a dense network.
      model: the network.
      shapes: shapes of its variables.
      correction: per-neuron scaling of the gradient.
      tx: the optimizer. All seeds share it, or each would compile again: the seed's
        masks and key are data in the optimizer's state.
    """

    def __init__(self, config: Config, dataset: Dataset, per_epoch: int):
        """Build the network and the optimizer; compute nothing yet.

        Args:
          config: the options.
          dataset: the data set to train on.
          per_epoch: steps in an epoch.

        Raises:
          ValueError: if the sparsity does not fit the network.
        """
        self.recipe = recipe = config.chosen
        self.per_epoch = per_epoch
        self.topology = make_topology(recipe, per_epoch)
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
        self.shapes = jax.eval_shape(self._variables, key)
        self.correction = self._make_correction()
        self.tx = self._make_optimizer(key)

    def begin(self, key: jax.Array) -> so.linen.TrainState:
        """Return the state before the first step."""
        params_key, topology_key = jax.random.split(key)
        variables = self._variables(params_key)
        state = so.linen.TrainState.create(
            apply_fn=None,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=self._make_optimizer(topology_key),
        )
        return state.replace(tx=self.tx)

    def step(
        self, run: Run, key: jax.Array, order: jax.Array, train: Split, *, change: bool
    ) -> Run:
        """Take one step.

        Args:
          run: the run before the step.
          key: key of the augmentation, the same for all steps.
          order: order of the images in this epoch, int32 (images,).
          train: the images.
          change: whether to update the masks.

        Returns:
          The run after the step.
        """
        state = run.state
        images, labels, dropout_key = self.batch(key, order, train, state.step)

        def loss_fn(params):
            logits, variables = self.model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                self.normalized(images),
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            loss = jnp.mean(_losses(logits, labels))
            return loss, (variables["batch_stats"], jnp.mean(_right(logits, labels)))

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (batch_stats, accuracy)), grads = gradient(state.params)
        replaces = change and self.topology and self.topology.replaces_step
        if change and replaces:  # RigL: the step that follows does not change weights
            state = self._changed(state, grads)
        state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
        if change and not replaces:  # SET
            state = self._changed(state, grads)
        return Run(state, Sums(run.sums.loss + loss, run.sums.accuracy + accuracy))

    def batch(
        self, key: jax.Array, order: jax.Array, train: Split, step: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return the images, labels and dropout key of a step."""
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

    def count(
        self, sums: Sums, state: so.linen.TrainState, place_and_test: tuple[Any, Split]
    ) -> Sums:
        """Add a batch of test images to the sums; the last batch may be incomplete."""
        first, test = place_and_test
        images = len(test.labels)
        rows = first + jnp.arange(min(EVALUATED_AT_ONCE, images))
        real = rows < images
        rows = jnp.minimum(rows, images - 1)
        logits: Any = self.model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            self.normalized(test.images[rows]),
            train=False,
        )
        labels = test.labels[rows]
        return Sums(
            sums.loss + jnp.sum(jnp.where(real, _losses(logits, labels), 0.0)),
            sums.accuracy + jnp.sum(real & _right(logits, labels)),
        )

    def normalized(self, images: jax.Array) -> jax.Array:
        """Standardise bytes to mean 0 and deviation 1, in the network's dtype."""
        return ((images - self._mean) / self._deviation).astype(self.model.dtype)

    def _changed(self, state: so.linen.TrainState, grads: Any) -> so.linen.TrainState:
        opt_state, params = so.update_topology(
            self.tx, grads, state.opt_state, state.params
        )
        return state.replace(opt_state=opt_state, params=params)

    def _variables(self, key: jax.Array) -> Any:
        image = jnp.zeros((1, *self._dataset.train_images.shape[1:]), self.model.dtype)
        return self.model.init(key, image, train=False)

    def _make_correction(self) -> optax.GradientTransformation:
        if self.recipe.correction == "fan_in":
            return so.scale_by_sparseopt()
        if self.recipe.correction == "batch_variance":
            shape = (1, *self._dataset.train_images.shape[1:])
            image = jax.ShapeDtypeStruct(shape, self.model.dtype)
            links = so.infer_norm_links(
                self.model.apply, self.shapes, image, train=False
            )
            return so.scale_by_batch_variance(links)
        return optax.with_extra_args_support(optax.identity())

    def _make_optimizer(self, key: jax.Array) -> optax.GradientTransformation:
        return make_optimizer(self.recipe, self.per_epoch, self.correction, key=key)


def _losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _right(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1) == labels
