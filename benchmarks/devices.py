"""A training step on 1, 2, 4 and 8 devices, sparse against dense.

    python -m benchmarks.devices

Data parallel over CPU devices, which share the machine's cores: times grow with the
devices, and only their ratio means anything. A block of a hundred steps has one change
of the topology in it.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import tyro
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparseopt_jax as so
from benchmarks import step_overhead as steps
from examples.digits.model import ResNet
from reporting import harness

DEVICES = (1, 2, 4, 8)
LIMIT = 1.05


class MLP(nn.Module):
    """Two hidden layers, about the size that digits need."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = x.reshape(x.shape[0], -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


def loss_of(model: nn.Module) -> Any:
    """The loss that ``so.make_train_step`` takes, with batch statistics or none."""

    def loss_fn(params, batch_stats, batch):
        images, labels = batch
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, ({}, changed.get("batch_stats", {}))

    return loss_fn


def candidates(
    name: str, model: nn.Module, devices: int, every: int
) -> list[harness.Candidate]:
    """Blocks of dense and of sparse steps on so many devices."""
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    by_data = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    batches = jax.device_put(steps.digit_batches(64), by_data)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    variables = {"batch_stats": {}, **variables}
    sgd = optax.sgd(0.05, momentum=0.9)
    topology = so.rigl(0.95, every=every, stop=10**9)
    corrected = optax.chain(so.scale_by_sparseopt(), sgd)
    step = so.make_train_step(loss_of(model), has_batch_stats=True)
    found = []
    for words, tx in (("dense", sgd), ("sparse", so.sparsify(corrected, topology))):
        state = so.linen.TrainState.create(
            apply_fn=None, tx=tx, **jax.tree.map(jnp.copy, variables)
        )
        run = steps.looping(
            lambda state, *batch: step(state, batch)[0],
            jax.device_put(state, replicated),
            itertools.cycle(batches),
            every,
            wait=True,
        )
        found.append(
            harness.Candidate(f"{name}, {devices} devices, {words}", run, every)
        )
    return found


def main(options: harness.Options) -> None:
    """Runs the benchmark."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    report = harness.Report("devices", options)
    models: dict[str, nn.Module] = {"MLP": MLP()}
    if not options.quick:
        models["ResNet"] = ResNet(16)
    every = 5 if options.quick else 100
    for name, model in models.items():
        for devices in DEVICES[:2] if options.quick else DEVICES:
            timings = harness.measure(
                candidates(name, model, devices, every), options.rounds_or(10)
            )
            dense, sparse = timings
            report.table(f"{name} on {devices} devices", timings, dense)
            ratio = timings[sparse].ratio(timings[dense]).median
            report.claim(f"{sparse} / dense", ratio, at_most=LIMIT)
    report.store()


if __name__ == "__main__":
    main(tyro.cli(harness.Options, description=__doc__))
