"""Invariants after every step, for any weights, gradients and masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import sparseopt_jax as so
from sparseopt_jax.arrays.selection import random_mask
from tests.helpers.examples import examples
from tests.helpers.optimizers import one_step

STOP = 8  # the drop fraction falls from 1 at step 0 to 0 here


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A leaf of a fixed shape, so that its compiled step is reused.

    Attributes:
      shape: the kernel's shape.
      dtype: its dtype.
      dims: its axes; None for the convention.
      layer: the axes of a single layer.
    """

    shape: tuple[int, ...]
    dtype: str
    dims: so.NeuronDims | None = None
    layer: tuple[int, ...] | None = None

    @property
    def copies(self) -> tuple[int, ...]:
        """Return the shape of one number per layer, with the layer's axes kept."""
        layer = range(len(self.shape)) if self.layer is None else self.layer
        return tuple(1 if a in layer else n for a, n in enumerate(self.shape))

    @property
    def size(self) -> int:
        """Return the number of weights in a single layer."""
        return int(np.prod(self.shape) // np.prod(self.copies))


KERNELS = [
    Kernel((12,), "float32"),
    Kernel((4, 6), "float32"),
    Kernel((4, 6), "bfloat16"),
    Kernel((4, 6), "float16"),
    Kernel((4, 3, 2), "bfloat16", so.NeuronDims(0, (1, 2))),
    Kernel((3, 3, 2, 4), "float32"),
    Kernel((3, 4, 5), "float32", so.NeuronDims(1, 2), (1, 2)),
    Kernel((2, 3, 2, 4), "float16", so.NeuronDims((1, 2), 3), (1, 2, 3)),
]

# Signed zeros, ties, the smallest and largest numbers; NaN and infinity come on top.
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.0, 6e-8, 1e-38, -6e4, 3e38]
BAD = [np.nan, np.inf, -np.inf]


def arrays(shape, *, finite):
    """Draw random and constant arrays, and arrays of ties or of special values."""
    normal = st.integers(0, 1000).map(
        lambda seed: np.random.default_rng(seed).normal(size=shape)
    )
    special = st.sampled_from(SPECIAL if finite else SPECIAL + BAD)
    return st.one_of(
        normal,
        special.map(lambda value: np.full(shape, value)),
        hnp.arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0, -1.0])),
        hnp.arrays(np.float64, shape, elements=special),
    )


@functools.cache
def compiled(method, kernel):
    """Compile a transformation that updates its masks at every step, and its step."""
    half = random_mask(
        jax.random.key(0), kernel.shape, kernel.size // 2, axis=kernel.layer
    )
    topology = method(
        masks={"kernel": half, "bias": optax.MaskedNode()},
        dims={"kernel": kernel.dims} if kernel.dims else None,
        every=1,
        stop=STOP,
        drop_fraction=1.0,
    )
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), topology)

    @jax.jit
    def prepare(params, active, count):
        """Return parameters and state at a step, with given active counts per layer."""
        mask = random_mask(jax.random.key(1), kernel.shape, active, axis=kernel.layer)
        masks = {"kernel": mask, "bias": optax.MaskedNode()}
        params = so.apply_masks(params, masks)
        return params, tx.init(params)._replace(masks=masks, count=count)

    return prepare, jax.jit(one_step(tx))


def tree(values, kernel):
    with np.errstate(over="ignore"):
        leaf = jnp.asarray(values.astype(jnp.dtype(kernel.dtype)))
    return {"kernel": leaf, "bias": jnp.ones(3, kernel.dtype)}


def per_layer(mask, kernel):
    return np.sum(mask, axis=kernel.layer, keepdims=True)


@pytest.mark.parametrize(
    "method", [so.rigl, pytest.param(so.set_, marks=pytest.mark.slow)]
)
@examples(75)
@given(kernel=st.sampled_from(KERNELS), data=st.data())
def test_a_change_keeps_counts_and_zeros(method, kernel, data):
    prepare, step = compiled(method, kernel)
    active = data.draw(
        hnp.arrays(np.int32, kernel.copies, elements=st.integers(1, kernel.size)),
        "active weights",
    )
    params = tree(data.draw(arrays(kernel.shape, finite=False), "weights"), kernel)
    grads = tree(data.draw(arrays(kernel.shape, finite=False), "gradients"), kernel)
    count = data.draw(st.integers(0, STOP), "step")
    params, state = prepare(params, jnp.asarray(active), jnp.int32(count))

    now = step(grads, params, state)

    new = np.asarray(now.state.masks["kernel"])
    old = np.asarray(state.masks["kernel"])
    assert new.dtype == np.bool_
    np.testing.assert_array_equal(per_layer(new, kernel), active)
    fan_ins = now.state.topology_state.fan_ins["kernel"]
    if count < STOP and fan_ins != optax.MaskedNode():
        reduced = [a for a, n in enumerate(fan_ins.shape) if n != kernel.shape[a]]
        np.testing.assert_array_equal(fan_ins, new.sum(tuple(reduced), keepdims=True))

    weights = np.asarray(now.params["kernel"])
    assert now.params["kernel"].dtype == kernel.dtype
    np.testing.assert_array_equal(weights[~new], 0)
    np.testing.assert_array_equal(weights[new & ~old], 0)

    (momentum,) = [
        np.asarray(x)
        for x in jax.tree.leaves(now.state.inner_state)
        if x.shape == kernel.shape
    ]
    np.testing.assert_array_equal(momentum[~(new & old)], 0)


@dataclasses.dataclass(frozen=True)
class Method:
    """A topology with its own structure or numbers, for a kernel of 8 by 6.

    Attributes:
      id: its name in a report.
      topology: updates the masks at every step until ``STOP``.
      cells: shape of the kernel in which ``axes`` are cells of equally many active
        weights.
      axes: axes of ``cells``; None if all weights are counted together.
      active: active weights per cell; None if their number changes.
    """

    id: str
    topology: so.Topology
    cells: tuple[int, ...] = (8, 6)
    axes: tuple[int, ...] | None = None
    active: int | None = None


ALWAYS = {"every": 1, "stop": STOP, "drop_fraction": 1.0}
METHODS = [
    Method("2_of_4", so.rigl(structure=so.NM(2, 4), **ALWAYS), (2, 4, 6), (1,), 2),
    Method("block", so.set_(0.5, structure=so.Block(2), **ALWAYS), active=24),
    Method("srigl", so.srigl(0.5, gamma_sal=0.8, **ALWAYS)),
    Method("snfs", so.snfs(0.5, **ALWAYS), active=24),
    Method("mest", so.mest(0.5, min_fan_in=2, **ALWAYS), active=24),
    Method("gradual", so.gradual_magnitude(0.5, every=1, stop=STOP)),
]


@functools.cache
def compiled_method(method):
    tx = so.sparsify(optax.sgd(0.1, momentum=0.9), method.topology)
    return tx, jax.jit(one_step(tx)), jax.jit(tx.init)


# Tests of the others check the same.
QUICK = ("block", "srigl", "snfs")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(
            method, marks=[] if method.id in QUICK else pytest.mark.slow, id=method.id
        )
        for method in METHODS
    ],
)
@examples(40)
@given(data=st.data())
def test_methods_keep_their_numbers_and_zeros(method, data):
    shape = (8, 6)
    kernel = Kernel(shape, "float32")
    _, step, init = compiled_method(method)
    params = tree(data.draw(arrays(shape, finite=False), "weights"), kernel)
    grads = tree(data.draw(arrays(shape, finite=False), "gradients"), kernel)
    count = data.draw(st.integers(0, STOP), "step")
    state = init(params)._replace(count=jnp.int32(count))
    params = so.apply_masks(params, state)
    old = np.asarray(state.masks["kernel"])
    held = old & ~np.isfinite(params["kernel"])

    now = step(grads, params, state)

    new, weights = (
        np.asarray(part["kernel"]) for part in (now.state.masks, now.params)
    )
    if method.active is not None:
        counts = new.reshape(method.cells).sum(method.axes)
        np.testing.assert_array_equal(counts, method.active)
    assert 0 < new.sum() <= old.sum()
    # No update can turn these into zero.
    assert new[held].all()
    if "block" in method.id:
        np.testing.assert_array_equal(new[:, ::2], new[:, 1::2])
    if method.topology.min_fan_in:
        assert (new.sum(0) >= method.topology.min_fan_in).all()
    np.testing.assert_array_equal(weights[~new], 0)
    np.testing.assert_array_equal(weights[new & ~old], 0)
    momentum = now.state.inner_state[0].trace["kernel"]
    np.testing.assert_array_equal(np.asarray(momentum)[~(new & old)], 0)


@examples(50)
@given(
    kernel=st.sampled_from([k for k in KERNELS if len(k.shape) > 1]),
    sparsity=st.floats(0.0, 0.95),
    distribution=st.sampled_from(["uniform", "erdos_renyi", "erdos_renyi_kernel"]),
    seed=st.integers(0, 100),
)
def test_a_start_has_the_planned_counts(kernel, sparsity, distribution, seed):
    topology = so.static(
        sparsity,
        distribution=distribution,
        dims={"kernel": kernel.dims} if kernel.dims else None,
    )
    params = {
        "kernel": jax.ShapeDtypeStruct(kernel.shape, kernel.dtype),
        "bias": jax.ShapeDtypeStruct((3,), kernel.dtype),
    }
    try:
        (leaf,) = [leaf for leaf in topology.leaves(params) if leaf.layer]
    except ValueError as error:
        assert "keeps at least one" in str(error)
        return
    masks, _ = topology.init(jax.random.key(seed), params)
    counts = per_layer(masks["kernel"], kernel)
    copies = np.prod(kernel.copies)
    assert (counts == leaf.active // copies).all()
    assert abs(leaf.active - (1 - sparsity) * kernel.size * copies) <= copies
    assert masks["bias"] == optax.MaskedNode()
