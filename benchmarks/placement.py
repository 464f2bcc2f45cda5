"""Placement of SparseOpt's correction: before or after each optimizer's own scaling.

    python -m benchmarks.placement

A small network with Batch Normalization and masks of uneven fan-ins is trained for 50
steps without the correction, with it before the optimizer, and with it after. Reported
is how far apart the trajectories end: |with - without| / |without - start|, over all
sparse kernels. Nothing is timed, so the result does not depend on the machine.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparseopt_jax as so
from reporting import harness

STEPS = 50
INPUTS, HIDDEN, OUTPUTS, SAMPLES = 32, 48, 10, 256

Part = optax.GradientTransformation


def optimizers() -> dict[str, tuple[Callable[[Part], Part], Callable[[Part], Part]]]:
    """Return, for each optimizer, chains with the correction before it and after it."""

    def around(make: Callable[[], Part]):
        return (
            lambda part: optax.chain(part, make()),
            lambda part: optax.chain(make(), part),
        )

    def adamw(first: Part, second: Part) -> Part:
        return optax.chain(
            *(first, optax.scale_by_adam(), second, optax.add_decayed_weights(0.01)),
            optax.scale_by_learning_rate(0.01),
        )

    def lamb(first: Part, second: Part) -> Part:
        return optax.chain(
            *(first, optax.scale_by_adam(eps=1e-6), second),
            so.scale_by_sparse_trust_ratio(),
            optax.scale_by_learning_rate(0.03),
        )

    def lars(first: Part, second: Part) -> Part:
        return optax.chain(
            *(first, so.scale_by_sparse_trust_ratio(trust_coefficient=0.02), second),
            *(optax.scale_by_learning_rate(1.0), optax.trace(0.9)),
        )

    def ham(first: Part, second: Part) -> Part:
        inner = optax.chain(optax.sgd(0.1), second)
        return optax.chain(first, so.ham(inner, 0.1, alpha=20.0))

    def placed(make: Callable[[Part, Part], Part]):
        return (
            lambda part: make(part, optax.identity()),
            lambda part: make(optax.identity(), part),
        )

    return {
        "SGD": around(lambda: optax.sgd(0.1)),
        "SGD with momentum": around(lambda: optax.sgd(0.02, momentum=0.9)),
        "Adam": around(lambda: optax.adam(0.01)),
        "AdamW": placed(adamw),
        "Lion": around(lambda: optax.lion(0.003)),
        "LARS": placed(lars),
        "LAMB": placed(lamb),
        "Muon": around(lambda: optax.contrib.muon(0.02)),
        "HAM on SGD": placed(ham),
    }


def start() -> tuple[dict[str, Any], dict[str, Any], Any, Any]:
    """Return parameters, masks, inputs and labels."""
    rng = np.random.default_rng(0)

    def kernel(inputs: int, neurons: int) -> tuple[jax.Array, jax.Array]:
        # Fan-ins from 1 to all inputs, uniform on a logarithmic scale.
        fan_ins = np.geomspace(1, inputs, neurons).round().astype(int)
        mask = np.zeros((inputs, neurons), bool)
        for neuron, fan_in in enumerate(fan_ins):
            mask[rng.choice(inputs, fan_in, replace=False), neuron] = True
        weights = rng.normal(size=mask.shape) / np.sqrt(inputs)
        return jnp.asarray(weights * mask, jnp.float32), jnp.asarray(mask)

    first, mask_1 = kernel(INPUTS, HIDDEN)
    second, mask_2 = kernel(HIDDEN, HIDDEN)
    head = rng.normal(size=(HIDDEN, OUTPUTS)) / np.sqrt(HIDDEN)
    params = {
        "dense_0": {"kernel": first},
        "norm_0": {"scale": jnp.ones(HIDDEN), "bias": jnp.zeros(HIDDEN)},
        "dense_1": {"kernel": second},
        "norm_1": {"scale": jnp.ones(HIDDEN), "bias": jnp.zeros(HIDDEN)},
        "head": {"kernel": jnp.asarray(head, jnp.float32)},
    }
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    masks["dense_0"]["kernel"], masks["dense_1"]["kernel"] = mask_1, mask_2
    inputs = rng.normal(size=(SAMPLES, INPUTS))
    labels = rng.integers(OUTPUTS, size=SAMPLES)
    return params, masks, jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)


def loss(params: dict[str, Any], inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the cross-entropy of a network with two normalised hidden layers."""
    x = inputs
    for number in (0, 1):
        x = x @ params[f"dense_{number}"]["kernel"]
        norm = params[f"norm_{number}"]
        x = (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)
        x = jax.nn.relu(x * norm["scale"] + norm["bias"])
    logits = x @ params["head"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(inner: Part, steps: int = STEPS) -> tuple[Any, Any]:
    """Return the sparse kernels at the start and at the end."""
    params, masks, inputs, labels = start()
    tx = so.sparsify(inner, so.static(masks=masks))

    @jax.jit
    def run(params):
        def step(now, _):
            params, state = now
            grads = jax.grad(loss)(params, inputs, labels)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
        return params

    kernels = [
        jnp.concatenate([p[f"dense_{n}"]["kernel"].ravel() for n in (0, 1)])
        for p in (params, run(params))
    ]
    return kernels[0], kernels[1]


def changes(steps: int = STEPS) -> dict[str, dict[str, float]]:
    """Return the effect of the correction on each trajectory, before and after."""
    found = {}
    for name, (before, after) in optimizers().items():
        first, without = train(before(optax.identity()), steps)
        way = float(jnp.linalg.norm(without - first))
        with warnings.catch_warnings():
            # Before Adam it does little, which is measured here.
            warnings.filterwarnings("ignore", "scale_by_sparseopt before")
            ends = {
                place: train(make(so.scale_by_sparseopt()), steps)[1]
                for place, make in (("before", before), ("after", after))
            }
        found[name] = {
            place: float(jnp.linalg.norm(end - without)) / way
            for place, end in ends.items()
        }
    return found


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.placement", options)
    found = changes(2 if options.quick else STEPS)
    rows = [{"optimizer": name, **places} for name, places in found.items()]
    report.listing(f"change of the way by the correction, {STEPS} steps", rows)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
