import doctest
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from reporting import harness
from studies import neuron_scales as scales
from studies.convergence import conditions, runs
from tests.helpers.small_networks import small_network


def neurons(fan_in, deviation):
    ones = np.ones(len(fan_in))
    return scales.Neurons(np.array(fan_in), np.array(deviation), ones, ones)


def test_its_examples():
    assert doctest.testmod(scales).failed == 0


def test_without_differences_there_is_no_exponent():
    assert scales.exponent([(np.ones(3), np.array([1.0, 2.0, 3.0]))]) is None
    assert scales.exponent([(np.zeros(2), np.ones(2))]) is None


def test_jumps_are_of_neurons_with_another_fan_in():
    before = {"a": neurons([4.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0])}
    after = {"a": neurons([1.0, 2.0, 4.0, 3.0], [0.5, 3.0, 1.0, 1.0])}
    said, measured = scales.jump(before, after)
    np.testing.assert_allclose(said, [-np.log(2), np.log(2)])
    np.testing.assert_allclose(measured, [-np.log(2), 0.0])


@pytest.fixture(scope="module")
def trainer():
    network = small_network(400, 8, width=64, classes=10, batch=40, epochs=8)
    condition = conditions.Condition("small", method="spread", sparsity=0.7, layers=2)
    return runs.Trainer(network, condition, "none")


def test_numbers_of_neurons_are_those_of_a_loop(trainer):
    params, batch_stats, opt_state = trainer.start(0.1, 0)
    masks = so.get_masks(opt_state)
    images, labels = trainer.network.data.train
    found = scales.neurons_of(trainer, params, batch_stats, masks, (images, labels))
    assert set(found) == {"hidden_1/kernel", "hidden_2/kernel"}

    def loss(kernel):
        changed = params | {"hidden_1": {"kernel": kernel}}
        return scales.loss_of(trainer.model)(changed, batch_stats, (images, labels))[0]

    kernel = params["hidden_1"]["kernel"]
    grads = np.asarray(jax.grad(loss)(kernel), float)
    mask = np.asarray(masks["hidden_1"]["kernel"])
    outputs = images.reshape(len(images), -1) @ np.asarray(kernel)
    neurons = found["hidden_1/kernel"]
    for neuron in range(0, 64, 7):
        inputs = mask[:, neuron]
        if inputs.sum() < 2:
            assert not any(x[neuron] for x in neurons)
            continue
        assert neurons.fan_in[neuron] == inputs.sum()
        weights = np.asarray(kernel)[inputs, neuron]
        wanted = np.linalg.norm(weights), np.linalg.norm(grads[inputs, neuron])
        np.testing.assert_allclose(neurons.weights[neuron], wanted[0], rtol=1e-5)
        np.testing.assert_allclose(neurons.gradient[neuron], wanted[1], rtol=1e-3)
        np.testing.assert_allclose(
            neurons.pace[neuron], wanted[1] / wanted[0], rtol=1e-3
        )
    # Up to one factor, which exponents do not depend on.
    alive = neurons.fan_in > 1
    factors = (neurons.deviation / outputs.std(axis=0))[alive]
    np.testing.assert_allclose(factors, factors[0], rtol=1e-4)


def test_the_theory_holds_at_the_start(trainer):
    """Weights and inputs are independent, as it assumes, in the first layer."""
    params, batch_stats, opt_state = trainer.start(0.1, 0)
    masks, batch = so.get_masks(opt_state), trainer.network.data.train
    found = scales.neurons_of(trainer, params, batch_stats, masks, tuple(batch))
    neurons = found["hidden_1/kernel"]
    exponents = {
        name: scales.exponent([(neurons.fan_in, getattr(neurons, name))])
        for name in scales.NUMBERS
    }
    assert exponents["deviation"] == pytest.approx(0.5, abs=0.15)
    assert exponents["weights"] == pytest.approx(0.5, abs=0.15)
    # Other differences between neurons, above all in their outgoing weights, leave only
    # the signs of these two.
    assert exponents["pace"] < -0.15 < 0.0 < exponents["gradient"] + 0.15


@pytest.mark.slow
def test_a_course_has_every_moment_and_change(trainer):
    course = scales.follow(trainer, 0.1, 0)
    assert len(course.exponents) == len(scales.MOMENTS)
    assert not course.jumps  # these masks are fixed
    (row, *_) = scales.table_of_exponents({"a": [course, course]})
    assert row["deviation_sd"] == 0.0
    assert scales.table_of_jumps({"a": [course]}) == []


@pytest.mark.slow
def test_a_quick_run(tmp_path):
    output = tmp_path / "record.json"
    scales.main(harness.Options(quick=True, output=output, allow_dirty=True))
    exponents, jumps = (t["rows"] for t in json.loads(output.read_text())["tables"])
    assert len(exponents) == len(scales.MOMENTS)
    assert jumps[0]["changes"] > 0
    assert jnp.isfinite(jumps[0]["follows"])
