"""A training step on 1, 2, 4 and 8 devices, sparse against dense.

    python -m benchmarks.devices

Data parallel over CPU devices, which share the machine's cores: times grow with the
number of devices, and only their ratio is meaningful. A block of a hundred steps
contains one update of the masks.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparseopt_jax as so
from benchmarks.steps import looping
from examples.common.mlp import MLP
from examples.digits.dataset import Split
from examples.digits.model import ResNet
from examples.digits.training import batches
from reporting import harness
from reporting.training import BATCH, IMAGE, load_digits, loss_of

DEVICES = (1, 2, 4, 8)
LIMIT = 1.05


def candidates(
    name: str, model: nn.Module, devices: int, every: int, train: Split
) -> list[harness.Candidate]:
    """Return blocks of dense and of sparse steps on a number of devices."""
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    by_data = NamedSharding(mesh, PartitionSpec("data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    seen = jax.device_put(
        [*batches(train, 1, np.random.default_rng(0), BATCH)], by_data
    )
    init = jax.jit(functools.partial(model.init, train=False))
    variables = init(jax.random.key(0), IMAGE)
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
        run = looping(
            lambda state, *batch: step(state, batch)[0],
            jax.device_put(state, replicated),
            itertools.cycle(seen),
            every,
            wait=True,
        )
        found.append(
            harness.Candidate(f"{name}, {devices} devices, {words}", run, every)
        )
    return found


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    report = harness.Report("benchmarks.devices", options)
    models: dict[str, nn.Module] = {"MLP": MLP(2, 256, 10, momentum=None)}
    if not options.quick:
        models["ResNet"] = ResNet(16)
    every = 5 if options.quick else 100
    train, _ = load_digits(options.quick)
    for name, model in models.items():
        for devices in DEVICES[:2] if options.quick else DEVICES:
            timings = harness.measure(
                candidates(name, model, devices, every, train), options.rounds_or(10)
            )
            dense, sparse = timings
            key = {"network": name, "devices": devices}
            report.table(f"{name} on {devices} devices", timings, dense, **key)
            ratio = timings[sparse].ratio(timings[dense]).median
            report.claim(f"{sparse} / dense", ratio, at_most=LIMIT, **key)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
