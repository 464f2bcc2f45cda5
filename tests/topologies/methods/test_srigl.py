"""SRigL: ablated neurons and equal fan-ins, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies.methods.srigl import Ablate
from tests.helpers.single_updates import ALWAYS, KEY, array, bits, changed


def srigl(mask, gamma_sal=0.3, **options):
    return so.srigl(masks={"w": mask}, gamma_sal=gamma_sal, **(ALWAYS | options))


# Three neurons of fan-in 2. Half of the six weights are dropped: both of the last
# neuron and one of the second. The largest gradients are at the first two neurons.
LOST = bits([1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0])


LOST_PARAM = array([9, 8, 1], [7, 2, 1], [0, 0, 0], [0, 0, 0])


LOST_GRAD = array([0, 0, 0], [0, 0, 0.1], [5, 4, 0.2], [3, 0.3, 0])


def test_a_neuron_without_salient_weights_gives_them_to_the_others():
    # Of the budget of 6 both other neurons get 3.
    new = changed(srigl(LOST), LOST, LOST_PARAM, LOST_GRAD)
    np.testing.assert_array_equal(new, [[1, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])


def test_gamma_sal_of_zero_ablates_nobody():
    new = changed(srigl(LOST, 0.0), LOST, LOST_PARAM, LOST_GRAD)
    np.testing.assert_array_equal(new, [[1, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]])


def test_a_salient_gradient_keeps_a_neuron():
    # One of two is half of its fan-in: enough for 0.5, not for more.
    grad = LOST_GRAD.at[2, 2].set(9.0)
    for gamma_sal, stays in ((0.5, True), (0.51, False)):
        new = changed(srigl(LOST, gamma_sal), LOST, LOST_PARAM, grad)
        assert bool(new[:, 2].any()) == stays
        assert len(set(np.asarray(new.sum(0))[: 2 + stays].tolist())) == 1


def test_a_budget_that_cannot_be_divided_is_rounded_down():
    # Of four neurons of fan-in 2 one is ablated: 8 weights make 2 for each of three.
    mask = jnp.concatenate([LOST, LOST[:, :1]], 1)
    param = jnp.concatenate([LOST_PARAM, LOST_PARAM[:, :1]], 1)
    grad = jnp.concatenate([LOST_GRAD, LOST_GRAD[:, :1]], 1)
    new = changed(srigl(mask), mask, param, grad)
    np.testing.assert_array_equal(new.sum(0), [2, 2, 0, 2])


def test_no_neuron_gets_more_than_it_has_inputs():
    # The first neuron would get all 4.
    mask = bits([1, 1], [1, 1], [0, 0])
    param, grad = array([9, 1], [9, 1], [0, 0]), array([0, 2], [0, 0], [1, 0])
    new = changed(srigl(mask, 1.0), mask, param, grad)
    np.testing.assert_array_equal(new, [[1, 0], [1, 0], [1, 0]])


def test_an_ablated_neuron_does_not_come_back():
    # Its gradients are the largest of all. If they counted as salient, the others would
    # be ablated in its favour.
    mask = bits([1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0])
    topology = srigl(LOST, 0.6, drop_fraction=1.0)
    param, grad = LOST_PARAM * mask, array([0, 0, 9], [0, 0, 9], [2, 3, 9], [3, 2, 9])
    new = changed(topology, mask, param, grad)
    np.testing.assert_array_equal(new, [[0, 0, 0], [0, 0, 0], [1, 1, 0], [1, 1, 0]])


def test_fan_ins_of_a_training_stay_equal_and_neurons_lost():
    topology = so.srigl(0.5, gamma_sal=0.9, **ALWAYS | {"stop": 20})
    params = {"w": jax.random.normal(KEY, (8, 6))}
    masks, state = topology.init(KEY, params)
    update = jax.jit(topology.update)
    alive = np.ones(6, bool)
    for step in range(12):
        key = jax.random.key(step)
        grads = {"w": jax.random.normal(key, (8, 6))}
        params = {"w": jax.random.normal(jax.random.fold_in(key, 1), (8, 6))}
        params = so.apply_masks(params, masks)
        masks, state = update(key, jnp.int32(step), masks, state, params, grads)
        fan_in = np.asarray(masks["w"]).sum(0)
        assert (fan_in[~alive] == 0).all()
        alive = fan_in > 0
        assert len(set(fan_in[alive])) == 1
    assert 0 < alive.sum() < 6


@pytest.mark.parametrize("gamma_sal", [-0.1, 1.1, float("nan")])
def test_a_fraction_of_salient_weights_out_of_range_is_refused(gamma_sal):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got"):
        so.srigl(0.5, gamma_sal=gamma_sal, every=1, stop=2)


def test_ablation_needs_fan_ins():
    with pytest.raises(ValueError, match=r"under ConstantFanIn\(\) only, got .*Unstr"):
        so.topologies.Rewiring(sparsity=0.5, stages=(Ablate(0.3),))
