"""Train a sparse network in one of several processes, and record its masks.

    python two_processes.py OUTPUT PROCESSES PROCESS COORDINATOR

Each process has its own part of the 8 devices, of every kernel and of every batch.
``tests/distributed/test_processes.py`` starts it.
"""

import hashlib
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so

STEPS = 8
BATCH = 32
CHANGES = {"every": 2, "start": 1, "stop": 8, "drop_fraction": 0.5}
# Also split a neuron's inputs over several processes.
SPECS = {"conv_1": P(None, None, None, "fsdp"), "conv_2": P(None, None, "fsdp")}


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for name in ("conv_1", "conv_2"):
            x = nn.Conv(16, (3, 3), use_bias=False, name=name)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(10, name="head")(jnp.mean(x, axis=(1, 2)))


def main(output, processes, process, coordinator):
    if processes > 1:
        jax.distributed.initialize(coordinator, processes, process)
    assert jax.process_count() == processes
    assert jax.device_count() == 8
    # Every pair of devices that splits the parameters spans both processes, and both
    # have copies of both parts.
    pairs = np.array(jax.devices()).reshape(2, 4).T
    pairs[1::2] = pairs[1::2, ::-1]
    mesh = Mesh(pairs, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    results = {
        name: train(mesh, method(0.5, **CHANGES))
        for name, method in {"set": so.set_, "rigl": so.rigl}.items()
    }
    output.write_text(json.dumps(results))


def train(mesh, topology):
    model = Network()
    tx = so.sparse_sgd(0.1, topology, momentum=0.9, sparseopt=True)

    def create():
        variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
        return so.linen.TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=tx,
        )

    def loss_fn(params, batch_stats, batch):
        images, labels = batch
        logits, variables = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), ({}, variables["batch_stats"])

    shapes = jax.eval_shape(create)
    same = NamedSharding(mesh, P())
    params = jax.tree.map(lambda _: same, shapes.params)
    for name, spec in SPECS.items():
        params[name]["kernel"] = NamedSharding(mesh, spec)
    shardings = jax.tree.map(lambda _: same, shapes).replace(
        params=params, opt_state=so.state_sharding(tx, shapes.params, params)
    )
    state = jax.jit(create, out_shardings=shardings)()
    step = jax.jit(
        so.make_train_step(loss_fn, has_batch_stats=True),
        donate_argnums=0,
        out_shardings=(shardings, same),
    )
    losses, masks = [], [fingerprints(so.get_masks(state))]
    for count in range(STEPS):
        state, metrics = step(state, own_rows(mesh, count))
        losses.append(float(metrics["loss"]))
        masks.append(fingerprints(so.get_masks(state)))
    for name in SPECS:
        for tree in (state.params, so.get_masks(state)):
            array = tree[name]["kernel"]
            assert array.addressable_shards[0].data.size == array.size // 2
            assert array.is_fully_addressable == (jax.process_count() == 1)
    return {"masks": masks, "losses": losses}


def own_rows(mesh, count):
    """Return a batch as a global array, of which this process makes only its rows."""
    sharding = NamedSharding(mesh, P(("fsdp", "data")))
    parts = sharding.addressable_devices_indices_map((BATCH,)).values()
    numbers = np.unique([np.arange(BATCH)[part] for part in parts])
    assert len(numbers) == BATCH // jax.process_count()
    rows = [np.random.default_rng([count, number]) for number in numbers]
    images = np.stack([row.normal(size=(8, 8, 3)) for row in rows]).astype(np.float32)
    labels = np.array([row.integers(10) for row in rows], np.int32)
    batch = jax.make_array_from_process_local_data(sharding, (images, labels))
    assert batch[0].shape == (BATCH, 8, 8, 3)
    return batch


def fingerprints(masks):
    """Return a fingerprint of every part of a mask that this process has a copy of."""
    found = {}
    for name in SPECS:
        for shard in masks[name]["kernel"].addressable_shards:
            digest = hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
            assert found.setdefault(f"{name} {shard.index}", digest) == digest
    assert len(found) == 2 * len(SPECS)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
