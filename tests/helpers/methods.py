"""Every topology and optimizer of the package, for tests of dtypes."""

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
