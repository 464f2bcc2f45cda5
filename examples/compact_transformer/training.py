"""Training of one method."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from examples.compact_transformer.config import Config
from examples.language_model.data import BITS
from examples.language_model.net import LanguageModel


def make_topology(config: Config, method: str) -> so.Topology:
    """Return the topology of a method."""
    block = (config.block, config.block)
    return {"rigl": so.rigl, "set": so.set_}[config.topology](
        config.sparsity,
        every=config.every,
        start=config.every,
        stop=max(config.every + 1, 3 * config.steps // 4),
        distribution={"*": config.sparsity},
        structure=so.Block(block) if method == "blocks" else so.Unstructured(),
        where=lambda path, leaf: path != "head/kernel",
    )


def make_optimizer(
    config: Config, method: str, seed: int
) -> optax.GradientTransformation:
    """Return AdamW, with masks that the host updates between steps."""
    peak, steps = config.learning_rate, config.steps
    adamw = optax.adamw(
        optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps, 0.1 * peak)
    )
    if method == "dense":
        return adamw
    topology = make_topology(config, method)
    return so.sparsify(adamw, topology, host_updates=True, key=seed)


class Method:
    """Train one method, compiled once for all seeds."""

    def __init__(self, config: Config, method: str, model: LanguageModel):
        self.config, self.name = config, method
        self.tx = make_optimizer(config, method, seed=0)
        self.topology = None if method == "dense" else make_topology(config, method)
        # Products of compact kernels run block by block; all other code is unchanged.
        self._apply = so.sparse_apply(model.apply)
        self.evaluate = jax.jit(self.loss)
        self._step = jax.jit(self._one_step, donate_argnums=(0, 1))
        self._gradient = jax.jit(so.dense_gradient(self.loss))
        self._update = jax.jit(
            lambda grads, state, params: so.update_topology(
                self.tx, grads, state, params
            )
        )

    def loss(self, params: Any, windows: jax.Array) -> jax.Array:
        """Return the mean loss over all bytes but the first of each window, in nats."""
        logits = self._apply({"params": params}, windows[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
        return jnp.mean(losses)

    def start(self, params: Any, seed: int) -> None:
        """Start a training from initial weights.

        Args:
          params: the weights; they are copied.
          seed: decides the first masks and what is grown at random.
        """
        params = jax.tree.map(jnp.copy, params)
        opt_state = make_optimizer(self.config, self.name, seed).init(params)
        if self.name != "dense":
            params = so.apply_masks(params, opt_state)
        if self.name == "blocks":
            params, opt_state = so.compact_params(params, opt_state)
        self.params, self.opt_state = params, opt_state
        self.seconds: list[float] = []
        self.train: list[float] = []
        self.held_out: list[float] = []

    def _one_step(self, params, opt_state, windows):
        loss, grads = jax.value_and_grad(self.loss)(params, windows)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def step(self, number: int, windows: np.ndarray) -> None:
        """Take a step, and update the masks if an update is due."""
        started = time.perf_counter()
        due = self.topology is not None and self.topology.due(number)
        # RigL's updates replace a step; SET's updates follow one.
        if due and self.config.topology == "rigl":
            self._move(windows)
        self.params, self.opt_state, loss = jax.block_until_ready(
            self._step(self.params, self.opt_state, windows)
        )
        if due and self.config.topology == "set":
            self._move(windows)
        self.seconds.append(time.perf_counter() - started)
        self.train.append(BITS * float(loss))

    def _move(self, windows: np.ndarray) -> None:
        grads = self._gradient(self.params, windows)
        self.opt_state, self.params = jax.block_until_ready(
            self._update(grads, self.opt_state, self.params)
        )

    def look(self, batches: Sequence[np.ndarray]) -> None:
        """Measure the held-out loss."""
        losses = [self.evaluate(self.params, windows) for windows in batches]
        self.held_out.append(BITS * float(np.mean(jax.device_get(losses))))

    def row(self, seed: int) -> dict[str, Any]:
        """Return the row of a finished run."""
        # The first step compiles, and so does the first update of the masks.
        return {
            "event": "run",
            "method": self.name,
            "seed": seed,
            "ms_per_step": 1e3 * float(np.median(self.seconds[1:])),
            "ms_per_update": 1e3 * float(self._longest()),
            "parameter_bytes": so.optimizer_bytes(self.params),
            "optimizer_bytes": so.optimizer_bytes(self.opt_state),
            "evaluated": self.config.evaluated,
            "held_out": self.held_out,
            "train": self.train,
        }

    def _longest(self) -> float:
        """Return the median seconds of steps with an update of the masks, 0 if none."""
        topology, steps = self.topology, range(self.config.every + 1, self.config.steps)
        due = [n for n in steps if topology is not None and topology.due(n)]
        return np.median([self.seconds[n] for n in due]) if due else 0.0
