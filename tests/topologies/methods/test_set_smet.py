"""SMET's topology: what it shares with SET, and what it cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so


def test_set_smet_takes_what_set_takes():
    mask = {"a": jnp.eye(4, dtype=bool)}
    decay = optax.constant_schedule(0.25)
    topology = so.set_smet(
        masks=mask, decay=decay, start=3, min_fan_in=1, every=2, stop=9
    )
    assert topology.schedule.steps == range(3, 9, 2)
    assert topology.schedule.decay is decay and topology.min_fan_in == 1
    masks, _ = topology.init(jax.random.key(0), {"a": jnp.ones((4, 4))})
    np.testing.assert_array_equal(masks["a"], mask["a"])
    blocks = so.set_smet(0.5, structure=so.Block((2, 2)), stop=900)
    assert blocks.structure == so.Block((2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": 100}, "first update would be at step every = 100, but stop = 100"),
        ({"stop": 50}, "first update would be at step every = 100, but stop = 50"),
        ({"stop": 9, "start": 9}, "stop must be greater than start = 9.*every = 100"),
        ({"stop": 900, "block": 4, "structure": so.NM(1, 2)}, "block or structure"),
        (
            {"stop": 900, "decay": "linear", "last_fraction": 0.1},
            "decay or last_fraction",
        ),
    ],
)
def test_what_set_smet_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        so.set_smet(0.5, **options)
