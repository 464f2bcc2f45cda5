"""The shapes whose memory is measured are those of the language model."""

import jax
import jax.numpy as jnp

from benchmarks import memory
from examples.language_model import net


def test_the_shapes_are_the_language_models():
    model = net.LanguageModel(net.SIZES["130m"], memory.VOCABULARY, tied=False)
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
    )
    wanted, found = (
        sorted(leaf.shape for leaf in jax.tree.leaves(tree))
        for tree in (variables["params"], memory.shapes(quick=False))
    )
    assert found == wanted


def test_a_leafs_bytes_are_those_of_its_own_state():
    state = {
        "mu": {"layer_1": {"kernel": jnp.ones(3)}, "layer_10": {"kernel": jnp.ones(5)}},
        "count": jnp.zeros((), jnp.int32),
    }
    assert memory.of_leaf(state, "layer_1/kernel") == 12


def test_the_peak_counts_what_is_given_and_made():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    assert memory.peak(lambda a: a + 1, x, given=()) == 8192
    assert memory.peak(lambda a: a + 1, x, given=(0,)) == 4096
