"""The training over a mesh: a network, its optimizer and its data, compiled."""

from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so
from examples.imagenet.config import Config
from examples.imagenet.data import (
    DEVIATION,
    MEAN,
    Batch,
    Reader,
    evaluation_batches,
    training_batches,
)
from examples.imagenet.mesh import (
    make_mesh,
    own_rows,
    param_shardings,
    replicated,
    size_of,
    split_batch,
    to_devices,
)
from examples.imagenet.model import ResNet
from examples.imagenet.recipes import make_optimizer, make_topology, total_steps


class Trainer:
    """A run: the network, its optimizer, and the placement of all arrays.

    Attributes:
      config: the options.
      mesh: the mesh of all devices.
      per_epoch: optimizer steps in an epoch.
      total: optimizer steps in the run.
    """

    def __init__(self, config: Config, images: int, classes: int):
        """Prepare a run; compute nothing yet.

        Args:
          config: the options.
          images: number of training images.
          classes: number of classes.

        Raises:
          ValueError: if the images, the devices or the sparsity do not fit.
        """
        self.config, self.recipe = config, config.chosen
        self.per_epoch = images // self.recipe.batch_size
        if self.per_epoch == 0:
            raise ValueError(
                f"batch_size must be at most {images}, the number of training images, "
                f"got {self.recipe.batch_size}"
            )
        self.total = total_steps(self.recipe, self.per_epoch)
        self.mesh = make_mesh(config.mesh)
        self.batch_sharding = split_batch(self.mesh)
        self.rows = own_rows(self.batch_sharding, config.micro_batch)
        self.model = ResNet(
            width=config.width,
            stages=config.stages,
            classes=classes,
            dtype=jnp.dtype(config.dtype),
            zero_init=config.zero_init,
        )
        self.topology: so.Topology | None = None
        if self.recipe.method != "dense":
            self.topology = make_topology(self.recipe, self.per_epoch)
        self.tx = make_optimizer(
            self.recipe,
            self.per_epoch,
            seed=config.seed,
            accumulate=config.accumulate,
        )
        shapes = jax.eval_shape(self._create)
        self.plan = self.topology and so.plan(shapes.params, self.topology)
        self.weights = size_of(shapes.params)
        same = replicated(self.mesh)
        params = param_shardings(self.mesh, shapes.params)
        self.shardings = jax.tree.map(lambda _: same, shapes).replace(
            params=params,
            opt_state=so.state_sharding(self.tx, shapes.params, params),
        )
        self.step = jax.jit(
            so.make_train_step(self._loss, has_batch_stats=True),
            donate_argnums=0,
            out_shardings=(self.shardings, same),
        )
        self.count = jax.jit(self._count, out_shardings=same)
        self.sparsity = jax.jit(so.metrics, out_shardings=same)

    def init(self) -> so.linen.TrainState:
        """Return the state before the first step, each shard created on its device."""
        return jax.jit(self._create, out_shardings=self.shardings)()

    def batches(self, source: Sequence[Any], done: int) -> Generator[Batch, None, None]:
        """Yield the training batches after ``done`` steps, as global arrays."""
        parts = self.config.accumulate
        rows = training_batches(
            source,
            self._reader(),
            seed=self.config.seed,
            per_epoch=self.per_epoch * parts,
            first=done * parts,
        )
        return (to_devices(batch, self.batch_sharding) for batch in rows)

    def evaluate(
        self, state: so.linen.TrainState, source: Sequence[Any]
    ) -> dict[str, float]:
        """Return loss and accuracy over every image of a split."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        sums: dict[str, float] = {}
        for rows in evaluation_batches(
            source, self._reader(), resize=self.config.resize
        ):
            batch = to_devices(rows, self.batch_sharding)
            for name, value in self.count(variables, batch).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        images = sums.pop("images")
        return {
            **{name: value / images for name, value in sums.items()},
            "images": int(images),
        }

    def _create(self) -> so.linen.TrainState:
        # The seed is a constant of the program, so all processes start from one key.
        key = jax.random.key(self.config.seed)
        size = self.config.image_size
        variables: Any = self.model.init(
            key, jnp.zeros([1, size, size, 3], self.model.dtype), train=False
        )
        return so.linen.TrainState.create(
            apply_fn=self.model.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=self.tx,
        )

    def _loss(self, params: Any, batch_stats: Any, batch: Batch) -> Any:
        logits, variables = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            self._normalized(batch.images),
            train=True,
            mutable=["batch_stats"],
        )
        targets = optax.smooth_labels(
            jax.nn.one_hot(batch.labels, self.model.classes),
            self.recipe.label_smoothing,
        )
        loss = jnp.mean(optax.softmax_cross_entropy(logits, targets))
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch.labels)
        return loss, ({"accuracy": accuracy}, variables["batch_stats"])

    def _count(self, variables: Any, batch: Batch) -> dict[str, jax.Array]:
        logits: Any = self.model.apply(
            variables, self._normalized(batch.images), train=False
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        right = jnp.argmax(logits, axis=-1) == batch.labels
        return {
            "loss": jnp.sum(batch.weights * losses),
            "accuracy": jnp.sum(batch.weights * right),
            "images": jnp.sum(batch.weights),
        }

    def _normalized(self, images: Any) -> jax.Array:
        # On the device, so that a byte is transferred and not a float of four.
        return ((images - MEAN) / DEVIATION).astype(self.model.dtype)

    def _reader(self) -> Reader:
        return Reader(
            batch_size=self.config.micro_batch,
            rows=self.rows,
            size=self.config.image_size,
            workers=self.config.workers,
            prefetch=self.config.prefetch,
        )
