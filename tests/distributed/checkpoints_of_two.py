"""One of two processes that save together, with equal or with different contents.

    python checkpoints_of_two.py RESULT PROCESSES PROCESS COORDINATOR DIRECTORY

``tests/checkpoint/test_processes.py`` starts both and reads their results.
"""

import functools
import json
import pathlib
import sys

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.checkpoint import Checkpoints
from tests.helpers.checkpoint_program import (
    batch,
    gradients,
    leaves,
    new_state,
    topology,
)


def replicated(x, first, second=None):
    """Return a global array of which each process has a copy, equal or not."""
    added = first if second is None or jax.process_index() == 0 else second
    sharding = NamedSharding(Mesh(jax.devices(), "all"), P())
    copies = [jax.device_put(x + added, device) for device in jax.local_devices()]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)


def split_within(x, added):
    """Return an array split over the devices of a process, one copy in each process."""
    devices = np.array(jax.devices()).reshape(jax.process_count(), -1)
    sharding = NamedSharding(Mesh(devices, ("copies", "parts")), P("parts"))
    parts = np.split(np.asarray(x) + added, devices.shape[1])
    pieces = [
        jax.device_put(part, device)
        for part, device in zip(parts, jax.local_devices(), strict=True)
    ]
    return jax.make_array_from_single_device_arrays(x.shape, sharding, pieces)


def scenarios(process):
    """Return, by name, the arguments of ``save`` and of ``Checkpoints``."""
    x = jnp.arange(8.0)
    rigl = {"topology": topology("rigl")}
    local = {"a": x, "inner": {"w": x, "b": x}}
    return {
        "another seed": ((1, {"a": x, "w": x + process}), {}),
        "copies of a global array": ((1, {"w": replicated(x, 0, 1)}), {}),
        "a split array": ((1, {"w": split_within(x, process)}), {}),
        "another step": ((1 + process, local), {}),
        "other data": ((1, local, {"index": process, "epoch": 0}), {}),
        "another leaf": ((1, local if process else {**local, "z": x}), {}),
        "another shape": ((1, {"w": x if process else x[:4]}), {}),
        "another topology": (
            (1, local),
            {"topology": topology("rigl", every=4)} if process else rigl,
        ),
        "another optimizer": (
            (1, local),
            {"optimizer": optax.sgd(0.1 if process else 0.2)},
        ),
        "data that is not JSON": ((1, local, x if process else None), {}),
        "no array": ((1, {"w": "text" if process else x}), {}),
        "a step that is none": ((2.0 if process else 1, local), {}),
    }


def refusals(directory, process):
    """Return the error of ``save`` for each of them, and the steps that exist then."""
    said = {}
    for name, (arguments, options) in scenarios(process).items():
        with Checkpoints(directory / "refused", **options) as checkpoints:
            try:
                checkpoints.save(*arguments)
                said[name] = "saved"
            except (TypeError, ValueError) as error:
                said[name] = str(error)
            said[name] += f" {checkpoints.steps}"
    return said


@functools.partial(jax.pmap, axis_name="devices")
def replica_step(state, x, y):
    grads = jax.lax.pmean(gradients(state, x, y), "devices")
    return state.apply_gradients(grads=grads)


def under_pmap(directory, process):
    """Tell whether an interrupted run that resumes equals the uninterrupted one."""
    replicate, unreplicate = flax.jax_utils.replicate, flax.jax_utils.unreplicate

    def trained(state, start, stop):
        count = jax.local_device_count()
        state = replicate(state)
        for index in range(start, stop):
            parts = (
                np.split(a, jax.process_count())[process].reshape(
                    count, -1, a.shape[-1]
                )
                for a in batch(index)
            )
            state = replica_step(state, *parts)
        return unreplicate(state)

    with Checkpoints(directory / "pmap", topology=topology("rigl")) as checkpoints:
        state = trained(new_state("rigl"), 0, 4)
        assert checkpoints.save(4, state, {"index": 4})
        assert not checkpoints.save(4, state, {"index": 4})
        expected = trained(state, 4, 7)
        checkpoints.wait()
        restored, data = checkpoints.restore(new_state("rigl"))
        again = trained(restored, 4, 7)
    assert data == {"index": 4}
    same = {
        path: leaves(again)[path].tobytes() == x.tobytes()
        for path, x in leaves(expected).items()
    }
    return {"same": all(same.values()), "step": int(restored.step)}


def restored_otherwise(directory, process):
    """Return the error of ``restore`` if one process asks for something else."""
    x = jnp.arange(8.0)
    with Checkpoints(directory / "other") as checkpoints:
        checkpoints.save(3, {"local": x, "split": split_within(x, 0)})
        template = {"local": x * 0, "split": split_within(x * 0, 0)}
        said = []
        for wanted in (
            template | ({"local": x[:4]} if process else {}),
            template | {"more": x},
        ):
            try:
                checkpoints.restore(wanted)
            except ValueError as error:
                said.append(str(error))
        state, _ = checkpoints.restore(template)
    found = [
        np.array_equal(shard.data, np.arange(8.0)[shard.index])
        for shard in state["split"].addressable_shards
    ]
    where = state["local"].sharding.is_fully_addressable
    return said, all(found) and np.array_equal(state["local"], x) and bool(where)


def second_run(directory):
    """Return the errors if another run writes, which process 0 simulates."""
    from sparseopt_jax.checkpoint.lock import WriterLock

    folder = directory / "busy"
    folder.mkdir(exist_ok=True)
    lock = WriterLock(folder) if jax.process_index() == 0 else None
    with Checkpoints(folder) as checkpoints:
        try:
            checkpoints.save(1, {"x": jnp.ones(2)})
            said = "saved"
        except ValueError as error:
            said = str(error)
    if lock is not None:
        lock.release()
    return said


def main(result, processes, process, coordinator, directory):
    jax.distributed.initialize(coordinator, int(processes), int(process))
    directory = pathlib.Path(directory)
    index = jax.process_index()
    found = {
        "refusals": refusals(directory, index),
        "pmap": under_pmap(directory, index),
        "restored": restored_otherwise(directory, index),
        "busy": second_run(directory),
        "version": so.__version__,
    }
    pathlib.Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
