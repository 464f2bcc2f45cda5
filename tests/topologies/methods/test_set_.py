"""SET, against the probabilities of its draws."""

import jax
import jax.numpy as jnp
import numpy as np

import sparseopt_jax as so
from tests.helpers.single_updates import KEY, bits


def test_set_drops_by_magnitude_and_grows_anywhere():
    mask = bits(*[1] * 4, *[0] * 12)
    topology = so.set_(
        masks={"w": mask}, every=1, stop=10, drop_fraction=0.5, decay="constant"
    )
    _, state = topology.init(KEY, {"w": mask.astype(jnp.float32)})
    param = jnp.arange(16, 0, -1.0) * mask

    @jax.jit
    def change(key):
        masks, _ = topology.update(
            key, jnp.int32(0), {"w": mask}, state, {"w": param}, {"w": param}
        )
        return masks["w"]

    news = np.stack([change(jax.random.key(seed)) for seed in range(300)])
    np.testing.assert_array_equal(news.sum(1), 4)
    assert news[:, :2].all()
    # Two of the fourteen others, including those just dropped: probability 1/7 each,
    # within five standard deviations of 300 draws.
    np.testing.assert_allclose(news[:, 2:].mean(0), 1 / 7, atol=0.101)
