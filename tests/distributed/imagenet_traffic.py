"""Communication of a training step, compared with the formulas of docs/scaling.md.

Needs eight devices: ``tests/examples/imagenet/test_program.py`` provides them.
"""

import functools
from pathlib import Path

import jax
import pytest

from examples.imagenet.config import Config
from examples.imagenet.data import Batch
from examples.imagenet.mesh import size_of
from examples.imagenet.trainer import Trainer
from reporting import hlo

ROOT = Path(__file__).resolve().parents[2]

BATCH, SIZE, PASSES = 16, 32, 16


@functools.cache
def compiled(method, mesh):
    """Return the step's collectives, and the shapes of its state."""
    config = Config(
        recipe="rigl",
        method=method,
        sparsity=0.5,
        every=2,
        batch_size=BATCH,
        mesh=mesh,
        width=8,
        stages=(1,),
        image_size=SIZE,
        resize=SIZE,
    )
    trainer = Trainer(config, images=10 * BATCH, classes=96)
    shapes = jax.eval_shape(trainer._create)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        shapes,
        trainer.shardings,
    )
    rows = functools.partial(jax.ShapeDtypeStruct, sharding=trainer.batch_sharding)
    batch = Batch(
        rows((BATCH, SIZE, SIZE, 3), "uint8"),
        rows((BATCH,), "int32"),
        rows((BATCH,), "float32"),
    )
    text = trainer.step.lower(state, batch).compile().as_text()
    return hlo.collectives(text, PASSES), shapes


@pytest.mark.parametrize("method", ["dense", "rigl"])
def test_copied_kernels_cost_the_sum_of_gradients_and_statistics(method):
    sent, shapes = compiled(method, "data=8")
    channels = size_of(shapes.batch_stats) // 2
    expected = 4 * size_of(shapes.params) + 12 * channels + 8
    assert hlo.moved(sent, hlo.SUMS) == expected
    assert hlo.moved(sent, hlo.MOVES) == 0
    assert all(one.times == 1 for one in sent)  # no pass of a selection is among them


def test_split_kernels_add_no_more_than_counts():
    sent, shapes = compiled("rigl", "fsdp=8")
    dense, _ = compiled("dense", "fsdp=8")
    kernels = [leaf for leaf in jax.tree.leaves(shapes.params) if leaf.ndim > 1]
    neurons = sum(leaf.shape[-1] for leaf in kernels)
    added = hlo.moved(sent, hlo.SUMS) - hlo.moved(dense, hlo.SUMS)
    selections = 2 * 2 * PASSES * 3 * 4 + 4
    assert 0 < added <= len(kernels) * selections + 4 * neurons
    assert any(one.times > 1 for one in sent)
    assert hlo.moved(sent, hlo.MOVES) == hlo.moved(dense, hlo.MOVES)


def test_split_kernels_are_gathered_for_two_passes_at_most():
    sent, shapes = compiled("dense", "fsdp=8")
    kernels = sum(leaf.size for leaf in jax.tree.leaves(shapes.params) if leaf.ndim > 1)
    gathered = hlo.moved(sent, ("all-gather",))
    assert 0 < gathered <= 2 * 4 * kernels
