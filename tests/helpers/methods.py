"""The package's topologies, optimizers and pruning, for tests of dtypes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so

WHEN = {"every": 2, "start": 1, "stop": 5}
PARAMS = {
    "conv": {"kernel": jax.random.normal(jax.random.key(0), (2, 2, 4, 8))},
    "dense": {"kernel": jax.random.normal(jax.random.key(1), (8, 8))},
    "bias": jnp.ones(8),
}
GRADS = jax.tree.map(jnp.cos, PARAMS)
TOPOLOGIES = {
    "static": so.static(0.5, min_fan_in=1),
    "set": so.set_(0.5, track_explored=True, **WHEN),
    "rigl": so.rigl(0.5, averaged_steps=2, corrected_growth=True, **WHEN),
    "rigl_linear": so.rigl(0.5, decay="linear", min_fan_in=1, **WHEN),
    "rigl_schedule": so.rigl(0.5, decay=optax.linear_schedule(0.3, 0, 5), **WHEN),
    "rigl_nm": so.rigl(structure=so.NM(2, 4), **WHEN),
    "rigl_block": so.rigl(0.5, structure=so.Block((2, 4)), **WHEN),
    "rigl_channel": so.rigl(0.5, structure=so.Channel(), **WHEN),
    "rigl_fan_in": so.rigl(0.5, structure=so.ConstantFanIn(), **WHEN),
    "srigl": so.srigl(0.5, **WHEN),
    "mest": so.mest(0.5, **WHEN),
    "snfs": so.snfs(0.5, **WHEN),
    "set_itop": so.set_itop(0.5, every=2, stop=5),
    "rigl_itop": so.rigl_itop(0.5, every=2, stop=5),
    "set_smet": so.set_smet(0.5, every=2, stop=5, block=4),
    "gradual": so.gradual_magnitude(0.5, initial_sparsity=0.25, **WHEN),
    "gradual_global": so.gradual_magnitude(0.5, scope="global", **WHEN),
    "gradual_schedule": so.gradual_magnitude(
        schedule=optax.linear_schedule(0.0, 0.5, 5), **WHEN
    ),
    "one_shot": so.one_shot(0.5, at=1, score="saliency"),
    "ac_dc": so.ac_dc(0.5, compress=[0, 3], decompress=[1]),
    "granet": so.granet(0.5, initial_sparsity=0.25, **WHEN),
    "ste": so.ste(0.5),
    "sr_ste": so.sr_ste(every=2, stop=4),
    "top_kast": so.top_kast(0.5, trained_sparsity=0.25, every=2),
    "phases": so.phases(
        (0, so.static(0.25)),
        (1, so.set_(0.5, **WHEN)),
        (4, so.static(masks=so.PREVIOUS_MASKS)),
    ),
}


def one_kernel() -> tuple[Any, so.Calibration]:
    """Return parameters and the statistics of their kernel's inputs."""
    params = {"kernel": PARAMS["dense"]["kernel"], "bias": PARAMS["bias"]}
    x = jnp.sin(jnp.arange(160, dtype=jnp.float32)).reshape(20, 8)
    return params, so.calibrate(_dense, params, [x])


def _dense(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _pruned(*args: Any, **options: Any) -> so.Pruned:
    params, calibration = one_kernel()
    grads = jax.tree.map(jnp.cos, params)
    options = {"sparsity": 0.5, "calibration": calibration, "grads": grads} | options
    return so.prune(params, *args, **options)


def _refined() -> so.Pruned:
    params, calibration = one_kernel()
    return so.dsnot(*so.prune(params, sparsity=0.5), calibration, params)


def _smaller() -> Any:
    first = PARAMS["dense"]["kernel"].at[:, :3].set(0.0)
    params = {"a": first, "b": PARAMS["bias"], "c": PARAMS["dense"]["kernel"]}

    def apply(params, x):
        return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"]

    return so.remove_neurons(apply, params, jnp.ones((2, 8), jnp.float32))[0]


AFTER_TRAINING: dict[str, Callable[[], Any]] = {
    **{
        name: functools.partial(_pruned, name)
        for name in ("magnitude", "random", "saliency", "wanda", "sparsegpt")
    },
    "global": functools.partial(_pruned, scope="global"),
    "nm": functools.partial(_pruned, "sparsegpt", sparsity=None, structure=so.NM(2, 4)),
    "dsnot": _refined,
    "remove_neurons": _smaller,
}

# Except those around ``optax.adam``, which itself promotes.
OPTIMIZERS = {
    "sparseopt": lambda topology: so.sparsify(
        optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1, momentum=0.9)), topology
    ),
    "packed": lambda topology: so.sparsify(
        optax.sgd(0.1, momentum=0.9), topology, packed=True
    ),
    "compact": lambda topology: so.sparsify(
        optax.sgd(0.1, momentum=0.9), topology, compact=True
    ),
    "sgd": lambda topology: so.sparse_sgd(
        0.1, topology, momentum=0.9, weight_decay=0.1, sparseopt=True
    ),
    "lars": lambda topology: so.sparse_lars(0.1, topology, sparseopt=True),
    "trust_ratio": lambda topology: so.sparsify(
        optax.chain(so.scale_by_sparse_trust_ratio(), optax.scale(-0.1)), topology
    ),
    "smet": lambda topology: so.smet(0.1, topology, warmup_steps=3),
    "local_adam": lambda topology: so.sparsify(
        optax.chain(so.scale_by_local_adam(warmup_steps=2), optax.scale(-0.1)), topology
    ),
    "ham": lambda topology: so.sparsify(
        so.ham(optax.sgd(0.1, momentum=0.9), 0.1, alpha=2.0), topology
    ),
    "sign_in": lambda topology: so.sparsify(
        so.sign_in(optax.sgd(0.1), every=2), topology
    ),
    "chain": lambda topology: optax.chain(so.sparseopt(topology), optax.sgd(0.1)),
}
