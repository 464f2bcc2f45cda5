"""A small training run that survives: tests stop it, kill it and start it again.

It saves after every step, so a save is almost always under way.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import sparseopt_jax as so
from sparseopt_jax.checkpoint import Checkpoints, stop_on_sigterm

METHODS = {"set": so.set_, "rigl": so.rigl}


def topology(method, sparsity=0.5, **options):
    """Return a topology that updates the first layer at steps 2, 5, 8 and so on."""
    schedule = {"every": 3, "start": 2, "stop": 1000, "drop_fraction": 0.5}
    return METHODS[method](sparsity, **(schedule | {"where": in_first} | options))


def in_first(path, leaf):
    return path.startswith("first")


@functools.cache
def optimizer(method, sparsity=0.5):
    """Return one optimizer for all states, since a compiled step belongs to one."""
    inner = optax.chain(so.scale_by_sparseopt(), optax.sgd(0.05, momentum=0.9))
    return so.sparsify(inner, topology(method, sparsity))


def new_state(method, *, width=16, sparsity=0.5, tx=None):
    rng = np.random.default_rng(0)
    return so.linen.TrainState.create(
        apply_fn=predict,
        params={
            "first": {
                "kernel": jnp.asarray(rng.normal(size=(8, width)) / 3, jnp.float32),
                "bias": jnp.zeros(width),
            },
            "second": {
                "kernel": jnp.asarray(rng.normal(size=(width, 4)) / 4, jnp.float32)
            },
        },
        tx=tx or optimizer(method, sparsity),
    )


def shapes_on(mesh, method):
    """Shard kernels, and all that has their shape, along the mesh's axes."""

    def sharded(x):
        spec = P(*mesh.axis_names) if x.ndim == 2 and x.shape[0] > 1 else P()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(sharded, jax.eval_shape(lambda: new_state(method)))


def shardings_on(mesh, method):
    return jax.tree.map(lambda x: x.sharding, shapes_on(mesh, method))


def new_state_on(mesh, method):
    return _programs_on(mesh, method)[0]()


def predict(params, x):
    hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["second"]["kernel"]


def batch(index):
    x = np.random.default_rng(index).normal(size=(32, 8)).astype(np.float32)
    return x, np.stack([x[:, 0] * x[:, 1], x[:, 2], np.sin(x[:, 3]), x[:, 4]], axis=1)


def gradients(state, x, y):
    def loss(params):
        return ((state.apply_fn(params, x) - y) ** 2).mean()

    return jax.grad(loss)(state.params)


def step(state, x, y):
    return state.apply_gradients(grads=gradients(state, x, y))


compiled_step = jax.jit(step, donate_argnums=0)


@functools.cache
def _programs_on(mesh, method):
    shardings = shardings_on(mesh, method)
    return (
        jax.jit(lambda: new_state(method), out_shardings=shardings),
        jax.jit(step, donate_argnums=0, out_shardings=shardings),
    )


def train_step(state, index):
    return compiled_step(state, *batch(index))


def train_step_on(mesh, method):
    """Return the step of a state with the shardings of ``shapes_on``."""
    return lambda state, index: _programs_on(mesh, method)[1](state, *batch(index))


def leaves(state):
    """Return every array of a state by its path, with keys as their data."""

    def plain(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    flat = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): plain(x) for path, x in flat}


def run(directory, method="rigl", *, steps, every=1, result=None, log=None, cache=None):
    """Train from the last checkpoint; return False if asked to stop.

    Args:
      directory: directory of the checkpoints.
      method: method of the topology.
      steps: total number of steps.
      every: steps between checkpoints.
      result: where to write the arrays of the last state.
      log: receives the first and the last step, as lines.
      cache: folder of compiled programs, for a quick start.
    """
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def say(what, step):
        if log is not None:
            with pathlib.Path(log).open("a") as file:
                file.write(f"{what} {step}\n")

    stop = stop_on_sigterm()
    mesh = Mesh(jax.devices(), "data")
    if jax.process_count() == 1:
        state, advance = new_state(method), train_step
    else:
        state, advance = new_state_on(mesh, method), train_step_on(mesh, method)
    with Checkpoints(directory, topology=topology(method)) as checkpoints:
        state, data = checkpoints.restore(state) or (state, {"index": 0})
        say("started", data["index"])
        for index in range(data["index"], steps):
            state = advance(state, index)
            stopping = stop.reached(index + 1)
            if stopping or (index + 1) % every == 0:
                checkpoints.save(index + 1, state, {"index": index + 1})
            if stopping:
                break
    say("left", int(state.step))
    if result is not None:
        everywhere = NamedSharding(mesh, P())
        whole = jax.jit(lambda state: state, out_shardings=everywhere)(state)
        np.savez(result, **leaves(whole))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--method", default="rigl")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--log")
    parser.add_argument("--result")
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int)
    args = parser.parse_args()
    if args.processes > 1:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    run(
        args.directory,
        args.method,
        steps=args.steps,
        log=args.log,
        result=args.result,
    )


if __name__ == "__main__":
    main()
