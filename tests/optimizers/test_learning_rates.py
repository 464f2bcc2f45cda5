"""Learning rates are found in finished transformations, or nothing is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparseopt_jax.optimizers.learning_rates import check_learning_rate

COSINE = optax.cosine_decay_schedule(0.1, 1000)


def warm(peak):
    return optax.warmup_cosine_decay_schedule(0.0, peak, 50, 1000)


# With one rate each, in chains of different forms.
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.1),
    "lamb": optax.lamb,
    "lars": optax.lars,
    "in_a_chain": lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate)),
    "in_two_chains": lambda rate: optax.chain(
        *(optax.scale(1 / 1024), optax.chain(optax.clip(1.0), optax.adam(rate)))
    ),
    "named_chain": lambda rate: optax.named_chain(
        ("clip", optax.clip(1.0)), ("sgd", optax.sgd(rate))
    ),
    "alone": optax.scale_by_learning_rate,
    "jitted": lambda rate: optax.GradientTransformation(
        optax.sgd(rate).init, jax.jit(optax.sgd(rate).update)
    ),
    "extra_args": lambda rate: optax.with_extra_args_support(
        optax.scale_by_learning_rate(rate)
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
@pytest.mark.parametrize(
    ("rate", "other", "at"),
    [
        (0.1, 0.2, ""),
        (0.1, 0.1001, ""),
        (np.float32(0.1), 1, ""),
        (0.0, 0.1, ""),
        (COSINE, 0.1, " at step 10"),
        (0.1, COSINE, " at step 10"),
        (COSINE, warm(0.1), " at step 0"),
        (warm(0.2), warm(0.1), " at step 1"),
    ],
)
def test_another_rate_is_an_error(name, rate, other, at):
    with pytest.raises(ValueError, match=f"{at}, but the inner optimizer steps by"):
        check_learning_rate(other, OPTIMIZERS[name](rate))


@every_optimizer
@pytest.mark.parametrize(
    ("rate", "same"),
    [
        (0.1, 0.1),
        (0.1, np.float32(0.1)),
        (jnp.float32(0.1), 0.1),
        (1, 1.0),
        (0.1, optax.constant_schedule(0.1)),
        (COSINE, COSINE),
        (warm(0.1), warm(0.1)),
    ],
)
def test_the_same_rate_is_none(name, rate, same):
    check_learning_rate(same, OPTIMIZERS[name](rate))


def test_both_rates_are_named():
    message = r"learning_rate is 0\.2, but the inner optimizer steps by 0\.1: give both"
    with pytest.raises(ValueError, match=message):
        check_learning_rate(0.2, optax.adam(0.1))


@pytest.mark.parametrize(
    ("rate", "links"),
    [
        (0.1, [optax.scale(-0.1)]),
        (0.1, [optax.sgd(0.5), optax.scale(0.2)]),
        (0.1, [optax.adafactor(0.1, multiply_by_parameter_scale=False)]),
        (
            COSINE,
            [optax.trace(0.9), optax.scale_by_schedule(COSINE), optax.scale(-1.0)],
        ),
        (COSINE, [optax.trace(0.9), optax.scale(-1), optax.scale_by_schedule(COSINE)]),
        (COSINE, [optax.scale_by_schedule(lambda count: -COSINE(count))]),
    ],
)
def test_factors_side_by_side_are_multiplied(rate, links):
    inner = optax.chain(*links)
    check_learning_rate(rate, inner)
    with pytest.raises(ValueError, match=r"but the inner optimizer steps by 0\.1"):
        check_learning_rate(0.3, inner)


def test_a_schedule_known_by_identity_is_not_called():
    def schedule(count):
        raise AssertionError("called")

    check_learning_rate(schedule, optax.adam(schedule))


def labels(params):
    return jax.tree.map(lambda _: "all", params)


@pytest.mark.parametrize(
    "inner",
    [
        optax.identity(),
        optax.set_to_zero(),
        optax.scale(0.5),
        optax.scale_by_adam(),
        # A sign alone, the rate being elsewhere or nowhere.
        optax.chain(optax.scale_by_adam(), optax.scale(-1.0)),
        optax.chain(optax.scale(-1.0), optax.trace(0.9), optax.scale(0.5)),
        optax.chain(optax.sgd(0.5), optax.trace(0.9), optax.scale(-1.0)),
        optax.adafactor(0.5),
        optax.polyak_sgd(),
        optax.lbfgs(),
        # Wrappers that do more than chain.
        optax.masked(optax.sgd(0.5), True),
        optax.partition({"all": optax.sgd(0.5)}, labels),
        optax.apply_if_finite(optax.sgd(0.5), 3),
        optax.MultiSteps(optax.sgd(0.5), 2),
        optax.MultiSteps(optax.sgd(0.5), 2).gradient_transformation(),
        optax.inject_hyperparams(optax.sgd)(0.5),
        optax.contrib.schedule_free(optax.sgd(0.5), 0.5),
        optax.contrib.prodigy(0.5),
    ],
)
def test_where_no_rate_is_found_nothing_is_said(inner):
    check_learning_rate(0.1, inner)
    check_learning_rate(COSINE, inner)


def test_one_is_a_rate_where_nothing_else_can_be():
    with pytest.raises(ValueError, match="but the inner optimizer steps by 1:"):
        check_learning_rate(0.1, optax.sgd(1.0))


def test_traced_rates_are_not_compared():
    @jax.jit
    def traced(rate):
        check_learning_rate(rate, optax.sgd(0.5))
        check_learning_rate(COSINE, optax.sgd(rate))
        check_learning_rate(COSINE, optax.sgd(lambda count: rate * count))
        return rate

    assert traced(0.25) == 0.25


def test_schedules_are_compared_while_tracing():
    @jax.jit
    def traced(x):
        check_learning_rate(COSINE, optax.sgd(optax.cosine_decay_schedule(0.1, 1000)))
        check_learning_rate(COSINE, optax.sgd(warm(0.1)))
        return x

    with pytest.raises(ValueError, match="at step 0"):
        traced(0.0)
