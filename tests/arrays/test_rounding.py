"""Fractions of large numbers are rounded to the unit."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so
from sparseopt_jax.arrays.counting import count_true
from sparseopt_jax.arrays.rounding import scaled
from sparseopt_jax.topologies.targets import targets

LARGE = (2**22 + 1, 2**24 + 1, 2**25 - 3, 2**30 + 7, 2**31 - 1)


@pytest.mark.parametrize("number", [0, 1, 37, 2**22, *LARGE])
def test_both_ends_are_exact(number):
    assert int(scaled(number, jnp.float32(1))) == number
    assert int(scaled(-number, jnp.float32(1))) == -number
    assert int(scaled(number, jnp.float32(0))) == 0
    assert int(jax.jit(scaled, static_argnums=0)(number, jnp.float32(1))) == number


@pytest.mark.parametrize("number", LARGE)
def test_between_them_it_is_the_nearest_integer(number):
    rng = np.random.default_rng(0)
    parts = np.float32([*rng.random(30), *rng.random(5) ** 12, 0.5, 0.125, 0.25, 1 / 3])
    found = jax.jit(jax.vmap(lambda part: scaled(number, part)))(parts)
    expected = [round(number * Fraction(float(part))) for part in parts]
    np.testing.assert_array_equal(found, expected)


def test_beyond_the_ends_it_stays_an_int32():
    assert int(scaled(2**23, jnp.float32(-0.5))) == -(2**22)
    assert int(scaled(2**23, jnp.float32(2.0))) == 2**24
    assert int(scaled(2**30, jnp.float32(1e9))) > 2**30


def shapes(*shape):
    return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}


@pytest.mark.parametrize("shape", [(2**12 + 1, 2**13 + 1), (2**15 - 1, 2**16)])
def test_dense_phases_are_dense_in_large_layers(shape):
    params, size = shapes(*shape), shape[0] * shape[1]
    ac_dc = so.ac_dc(0.9, compress=[1, 3], decompress=[2])
    assert [int(targets(ac_dc, t, params)["kernel"]) for t in (0, 2)] == [size] * 2
    gradual = so.gradual_magnitude(0.9, every=1, start=2, stop=6)
    last = gradual.leaves(params)[0].active
    assert int(targets(gradual, 2, params)["kernel"]) == size
    assert int(targets(gradual, 5, params)["kernel"]) == last
    half = int(targets(gradual, 3, params)["kernel"])
    progress = Fraction(float(gradual.density.progress(3)))
    assert half == last + round((size - last) * progress)


HUGE = shapes(2**16, 2**15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: so.static(0.9),
        lambda: so.static(0.9, structure=so.ConstantFanIn()),
        lambda: so.rigl(0.9, every=1, stop=5, structure=so.ConstantFanIn()),
        lambda: so.set_(structure=so.NM(2, 4), every=1, stop=5),
        lambda: so.srigl(0.9, every=1, stop=5),
        lambda: so.snfs(0.9, every=1, stop=5),
        lambda: so.gradual_magnitude(0.9, every=1, stop=5, scope="global"),
        lambda: so.ste(structure=so.NM(2, 4)),
        lambda: so.phases((0, so.static(0.9)), (1, so.static(masks=so.PREVIOUS_MASKS))),
    ],
)
def test_layers_that_an_int32_does_not_count_fail_at_init(make):
    topology = make()
    with pytest.raises(ValueError, match=r"'kernel' has 2147483648 units of .*Block"):
        jax.eval_shape(lambda: topology.init(jax.random.key(0), HUGE))


def test_blocks_make_them_countable():
    topology = so.rigl(0.9, every=1, stop=5, structure=so.Block((64, 64)))
    (plan,) = topology.leaves(HUGE)
    assert plan.units.per_layer == 2**31 // 64**2
    stacked = so.static(0.9, dims=so.NeuronDims(1, 2))
    assert stacked.leaves(shapes(2, 2**15, 2**15))[0].layer.copies == 2


def test_layers_that_are_compared_are_counted_together():
    params = {f"k{i}": jax.ShapeDtypeStruct((2**15, 2**15), jnp.float32) for i in "ab"}
    for topology in (
        so.granet(0.9, every=1, stop=5),
        so.snfs(0.9, every=1, stop=5),
        so.one_shot(0.9, at=3, scope="global"),
    ):
        with pytest.raises(ValueError, match="compares all layers, whose 2147483648"):
            topology.leaves(params)
    assert so.rigl(0.9, every=1, stop=5).leaves(params)


@pytest.mark.parametrize("axes", [None, (0,), (1,)])
def test_masks_beyond_an_int32_are_counted(axes):
    mask = jax.ShapeDtypeStruct((2**16, 2**16), jnp.bool_)
    count = jax.eval_shape(lambda mask: count_true(mask, axes), mask)
    assert count.dtype == jnp.int32
