"""Optimizers and topologies that differ, and what distinguishes them."""

import functools

import jax
import jax.numpy as jnp
import optax

import sparseopt_jax as so

TOPOLOGY = so.rigl(0.5, every=2, stop=100)


def around(inner, **options):
    return so.sparsify(inner, TOPOLOGY, **options)


def decayed(mask):
    return around(optax.chain(optax.add_decayed_weights(0.1, mask), optax.sgd(0.1)))


def scheduled(schedule):
    return around(optax.sgd(schedule))


def clipped(limit, axis=None):
    """Return a user-defined transformation."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda x: jnp.clip(x, -limit, limit), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def kernels(params, *, names=("kernel",)):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(name in str(path) for name in names), params
    )


# Two optimizers whose states have the same shapes, and what distinguishes them.
PAIRS = {
    "the correction": (
        so.sparse_sgd(0.1, TOPOLOGY, momentum=0.9, sparseopt=True),
        so.sparse_sgd(0.1, TOPOLOGY, momentum=0.9, sparseopt=False),
        "optimizer: sparsify(scale_by_sparseopt > ",
    ),
    "nadam": (
        around(optax.adam(0.1)),
        around(optax.nadam(0.1)),
        "optimizer, scale_by_adam.nesterov: False in the checkpoint, True in this run",
    ),
    "sign_sgd": (around(optax.sgd(0.1)), around(optax.sign_sgd(0.1)), "scale_by_sign"),
    "the learning rate": (
        around(optax.sgd(0.1)),
        around(optax.sgd(0.2)),
        "optimizer, scale.step_size: -0.1 in the checkpoint, -0.2 in this run",
    ),
    "momentum": (
        around(optax.sgd(0.1, momentum=0.9)),
        around(optax.sgd(0.1, momentum=0.8)),
        "optimizer, trace.decay: 0.9 in",
    ),
    "b1": (
        around(optax.adam(0.1)),
        around(optax.adam(0.1, b1=0.5)),
        "scale_by_adam.b1",
    ),
    "a schedule": (
        scheduled(optax.cosine_decay_schedule(0.1, 100)),
        scheduled(optax.cosine_decay_schedule(0.1, 200)),
        "learning_rate.decay_steps: 100",  # a float after its first call
    ),
    "a joined schedule": (
        scheduled(optax.warmup_cosine_decay_schedule(0, 0.1, 5, 100)),
        scheduled(optax.warmup_cosine_decay_schedule(0, 0.1, 9, 100)),
        "optimizer, scale_by_schedule.step_size_fn",
    ),
    "a lambda": (
        scheduled(lambda step: 0.1 / (1 + step)),
        scheduled(lambda step: 0.2 / (1 + step)),
        "optimizer, scale_by_schedule.step_size_fn.learning_rate.code of Python",
    ),
    "an injected schedule": (
        around(optax.inject_hyperparams(optax.sgd)(lambda step: 0.1 / (1 + step))),
        around(optax.inject_hyperparams(optax.sgd)(lambda step: 0.2 / (1 + step))),
        "optimizer, inject_hyperparams.sched_hps.learning_rate.schedule_fn.code",
    ),
    "an injected number": (
        around(optax.inject_hyperparams(optax.sgd)(0.1)),
        around(optax.inject_hyperparams(optax.sgd)(0.2)),
        "optimizer, inject_hyperparams.numeric_hps.learning_rate: 0.1 in",
    ),
    "a partial": (
        decayed(functools.partial(kernels, names=("kernel",))),
        decayed(functools.partial(kernels, names=("kernel", "bias"))),
        "optimizer, masked.mask.names: ['kernel'] in",
    ),
    "a lambda over trees": (
        decayed(lambda params: kernels(params)),
        decayed(lambda params: jax.tree.map(lambda _: True, params)),
        "optimizer, masked.mask.code of Python",
    ),
    "one's own": (
        optax.chain(clipped(1.0), around(optax.sgd(0.1))),
        optax.chain(clipped(2.0), around(optax.sgd(0.1))),
        "optimizer, clipped.limit: 1.0 in the checkpoint, 2.0 in this run",
    ),
    "the order": (
        around(optax.chain(optax.clip(1.0), optax.scale(2.0))),
        around(optax.chain(optax.scale(2.0), optax.clip(1.0))),
        "optimizer: sparsify(clip > scale) in the checkpoint, sparsify(scale > clip)",
    ),
    "host_updates": (
        around(optax.sgd(0.1)),
        around(optax.sgd(0.1), host_updates=True),
        "optimizer, sparsify.host_updates: False in the checkpoint, True in this run",
    ),
    "host_updates of compact": (
        around(optax.adam(0.1), compact=True),
        around(optax.adam(0.1), compact=True, host_updates=True),
        "optimizer, sparsify.host_updates: False in the checkpoint, True in this run",
    ),
    "host_updates of ste": (
        so.sparsify(optax.sgd(0.1), so.ste(0.5)),
        so.sparsify(optax.sgd(0.1), so.ste(0.5), host_updates=True),
        "optimizer, sparsify.host_updates: False in the checkpoint, True in this run",
    ),
    "two scales": (
        around(optax.chain(optax.scale(1.0), optax.scale(2.0))),
        around(optax.chain(optax.scale(1.0), optax.scale(3.0))),
        "optimizer, scale.step_size (2): 2.0 in the checkpoint, 3.0 in this run",
    ),
    "smet": (
        so.smet(0.1, so.set_smet(0.5, stop=1000)),
        so.smet(0.1, so.set_smet(0.5, stop=1000), warmup_steps=7),
        "warmup_steps: 100 in the checkpoint, 7 in this run",
    ),
    "MultiSteps": (
        optax.MultiSteps(around(optax.sgd(0.1)), 2).gradient_transformation(),
        optax.MultiSteps(around(optax.sgd(0.1)), 4).gradient_transformation(),
        "every_k_schedule: 2 in the checkpoint, 4 in this run",
    ),
    "sparseopt of another form": (
        optax.chain(so.sparseopt(TOPOLOGY), optax.sgd(0.1)),
        optax.chain(so.sparseopt(TOPOLOGY), optax.sgd(0.3)),
        "optimizer, scale.step_size: -0.1 in the checkpoint, -0.3 in this run",
    ),
}


def score(key, param, grad, power=1):
    del key, grad
    return jnp.abs(param) ** power


def custom(**settings):
    return so.topologies.Rewiring(sparsity=0.5, schedule=TOPOLOGY.schedule, **settings)


TOPOLOGIES = {
    "lambdas": (
        custom(drop=lambda key, param, grad: abs(param)),
        custom(drop=lambda key, param, grad: abs(param * grad)),
    ),
    "keywords of a partial": (
        custom(grow=functools.partial(score, power=1)),
        custom(grow=functools.partial(score, power=2)),
    ),
    "decays": (
        so.rigl(0.5, every=2, stop=100, decay=optax.linear_schedule(0.3, 0.0, 100)),
        so.rigl(0.5, every=2, stop=100, decay=optax.linear_schedule(0.3, 0.1, 100)),
    ),
    "structures": (
        so.rigl(0.5, every=2, stop=100, structure=so.Block((2, 2))),
        so.rigl(0.5, every=2, stop=100, structure=so.Block((4, 4))),
    ),
    "top_kast": (
        so.top_kast(0.5, trained_sparsity=0.25),
        so.top_kast(0.5, trained_sparsity=0.3),
    ),
    "phases": (
        so.phases((0, so.static(0.5)), (3, so.rigl(0.5, every=2, stop=100))),
        so.phases((0, so.static(0.5)), (3, so.rigl(0.5, every=2, stop=90))),
    ),
}
