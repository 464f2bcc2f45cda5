"""Optimizer steps on the parameters of ResNet-50, and loops of steps."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so

SPARSITY = 0.9
TINY = {"head": {"kernel": (16, 8), "bias": (8,)}}
# The condition is part of the program, and is never true.
NEVER_DUE: dict[str, Any] = {"every": 100, "start": 10**9, "stop": 2 * 10**9}
MOVING = {"SET": so.set_, "RigL": so.rigl}
BY_HAND = "masks by hand"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A base optimizer, bare and with SparseOpt placed where it takes effect.

    Attributes:
      name: its name in tables.
      bare: the optimizer.
      corrected: the same with ``scale_by_sparseopt``.
    """

    name: str
    bare: optax.GradientTransformation
    corrected: optax.GradientTransformation


OPTIMIZERS = (
    Optimizer(
        "sgd",
        optax.sgd(1e-3, momentum=0.9),
        optax.chain(so.scale_by_sparseopt(), optax.sgd(1e-3, momentum=0.9)),
    ),
    Optimizer(
        "adamw",
        optax.adamw(1e-3),
        optax.chain(
            optax.scale_by_adam(),
            so.scale_by_sparseopt(),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(1e-3),
        ),
    ),
)


def resnet_shapes(
    blocks: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    classes: int = 1000,
    bottleneck: bool = True,
) -> dict[str, Any]:
    """Return shapes of a ResNet's parameters: by default ResNet-50's, 25.6 million.

    Args:
      blocks: number of blocks in each stage.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      classes: outputs of the head.
      bottleneck: whether blocks have three convolutions, as in ResNet-50, or two.

    Returns:
      A tree in Flax's layout, a tuple for each parameter.
    """

    def conv(size, inputs, outputs):
        return {
            "conv": {"kernel": (size, size, inputs, outputs)},
            "norm": {"scale": (outputs,), "bias": (outputs,)},
        }

    shapes: dict[str, Any] = {"stem": conv(7, 3, width)}
    inputs = width
    for stage, count in enumerate(blocks):
        features = width * 2**stage
        outputs = 4 * features if bottleneck else features
        for index in range(count):
            if bottleneck:
                block = {
                    "reduce": conv(1, inputs, features),
                    "middle": conv(3, features, features),
                    "expand": conv(1, features, outputs),
                }
            else:
                block = {"first": conv(3, inputs, features)}
                block["second"] = conv(3, features, features)
            if index == 0 and inputs != outputs:
                block["shortcut"] = conv(1, inputs, outputs)
            shapes[f"stage_{stage}_block_{index}"] = block
            inputs = outputs
    shapes["head"] = {"kernel": (inputs, classes), "bias": (classes,)}
    return shapes


def random_arrays(shapes: Any, seed: int) -> Any:
    """Draw normal numbers of scale 0.01 as float32 arrays of these shapes."""
    draw = np.random.default_rng(seed).standard_normal
    return jax.tree.map(
        lambda shape: jnp.asarray(0.01 * draw(shape, dtype=np.float32)),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def count(shapes: Any) -> int:
    """Count the numbers in arrays of these shapes."""
    leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))
    return sum(map(math.prod, leaves))


def optimizer_step(tx: optax.GradientTransformation, carry: Any, grads: Any) -> Any:
    """Update (state, params)."""
    opt_state, params = carry
    updates, opt_state = tx.update(grads, opt_state, params)
    return opt_state, optax.apply_updates(params, updates)


def start(tx: optax.GradientTransformation, params: Any) -> Any:
    """Return a new state and a copy of the weights, sparse if the state holds masks."""
    params = jax.tree.map(jnp.copy, params)
    opt_state = tx.init(params)
    if isinstance(opt_state, so.SparseState):
        params = so.apply_masks(params, opt_state)
    return opt_state, params


def step_by_hand(
    tx: optax.GradientTransformation, carry: Any, grads: Any
) -> tuple[Any, Any]:
    """Update ((state, masks), params) as one would without a library.

    The minimum that keeps zeros exact. The optimizer's state is not reset, so a weight
    grown later would start with the state accumulated at its position.
    """
    (opt_state, masks), params = carry
    grads = so.apply_masks(grads, masks)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = so.apply_masks(optax.apply_updates(params, updates), masks)
    return (opt_state, masks), params


def start_by_hand(tx: optax.GradientTransformation, params: Any) -> Any:
    """Return state, masks and weights for ``step_by_hand``."""
    masks = so.static(SPARSITY).init(jax.random.key(0), params)[0]
    params = so.apply_masks(jax.tree.map(jnp.copy, params), masks)
    return (tx.init(params), masks), params


def topology_step(tx: optax.GradientTransformation, carry: Any, grads: Any) -> Any:
    """Update the masks of (state, params)."""
    return so.update_topology(tx, grads, *carry)


def looping(
    step: Callable[..., Any],
    carry: Any,
    inputs: Iterable[tuple],
    steps: int = 1,
    in_place: bool = True,
    wait: bool = False,
) -> Callable[[], Any]:
    """Return a function that takes steps, each from the result of the previous one.

    Args:
      step: ``step(carry, *given) -> carry``, to be compiled.
      carry: the carry of the first step; it must not be used afterwards.
      inputs: further inputs of the steps, an infinite iterable.
      steps: number of steps per call.
      in_place: whether a step donates its inputs, as training programs do, so that they
        are overwritten.
      wait: whether to wait for each step before the next is started.

    Returns:
      A function that takes the steps and returns the result.
    """
    compiled = jax.jit(step, donate_argnums=0 if in_place else ())
    remaining = iter(inputs)

    def run():
        nonlocal carry
        for given in itertools.islice(remaining, steps):
            carry = compiled(carry, *given)
            if wait:
                jax.block_until_ready(carry)
        return carry

    return run
