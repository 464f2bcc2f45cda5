"""The contract of every transformation of ``tests/helpers/optimizers.py``."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from tests.helpers.optimizers import (
    BATCH_STATS,
    INNER,
    INNER_WITH_SET,
    KERNELS,
    ROWS,
    SHAPES,
    Moment,
    gradients,
    one_step,
    random_tree,
    rigl,
    sparse_states,
    start,
    train,
    tree_of_shapes,
)

# These optax transformations behave like others, so their rows add nothing.
OF_A_KIND = (
    *("sgd", "rmsprop", "adagrad", "adafactor", "amsgrad", "novograd", "adan"),
    *("adabelief", "yogi", "radam", "lamb", "lars", "prodigy", "adamw", "lion"),
    *("clipped", "masked_decay"),
)


def quickly(names):
    """Return parameters, of which redundant ones wait for ``make test-slow``."""

    def waits(id):
        return id in OF_A_KIND or id.endswith("_with_set")

    return [
        pytest.param(name, marks=[pytest.mark.slow] if waits(id) else [], id=id)
        for name, id in ((name, getattr(name, "id", name)) for name in names)
    ]


KERNEL_SHAPES = {SHAPES[name]["kernel"]: name for name in KERNELS}


# Every operation of an eager step is compiled separately: one row for each way to store
# and to update masks. The others wait for ``make test-slow``.
EAGER = (
    *("sparsify_set", "sparsify_set_packed", "sparsify_rigl_compact"),
    *("sparsify_rigl_host", "phases", "ste"),
)


@pytest.fixture(scope="module", params=quickly([*ROWS, *INNER_WITH_SET]))
def row(request):
    return request.param


@functools.cache
def trained(name):
    (row,) = (row for row in [*ROWS, *INNER_WITH_SET] if row.id == name)
    return train(row)


@pytest.fixture
def run(row):
    return trained(row.id)


# For float32, other tests show that a state can be carried.
@pytest.fixture(params=["bfloat16", "float16"])
def dtype(request):
    return jnp.dtype(request.param)


def types(tree):
    return jax.tree.map(jax.typeof, tree)


def per_kernel(tree):
    """Return the leaves of a state that belong to a kernel, by their shape."""
    return [
        (KERNEL_SHAPES[leaf.shape], np.asarray(leaf))
        for leaf in jax.tree.leaves(tree)
        if leaf.shape in KERNEL_SHAPES
    ]


def changes(run):
    """Return each pair of moments between which the topology changed."""
    pairs = itertools.pairwise(run.moments)
    return [(old, new) for old, new in pairs if old.changed_at != new.changed_at]


# The state, as JAX and optax see it.


def test_the_second_step_compiles_nothing(run):
    assert run.traces == 1


def test_every_leaf_of_the_state_is_an_array(run):
    for moment in run.moments:
        assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(moment.state))


def test_init_takes_shapes_for_arrays(row):
    if "values" in row.needs:
        pytest.skip("its own init takes arrays only")
    concrete = types(row.make().init(random_tree(0)))
    abstract = row.make().init(tree_of_shapes())
    assert types(abstract) == concrete


def test_init_can_be_evaluated_abstractly(row):
    tx = row.make()
    abstract = jax.eval_shape(lambda params: tx.init(params), tree_of_shapes())
    concrete = tx.init(random_tree(0))
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    jax.tree.map(lambda a, c: a.update(weak_type=False), abstract, concrete)


def test_the_state_can_be_carried(row):
    tx = row.make()
    step = one_step(tx)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), gradients(0))

    def scanned(params):
        return jax.lax.scan(
            lambda now, grads: (step(grads, *now), None), start(tx, params), many
        )

    def branched(params, take):
        def stay(grads, params, state):
            return Moment(params, state)

        return jax.lax.cond(take, step, stay, gradients(0), *start(tx, params))

    jax.eval_shape(scanned, random_tree(0))
    jax.eval_shape(branched, random_tree(0), True)


def test_types_are_kept(row, dtype):
    tx = row.make()

    def stepped(params, grads):
        now = start(tx, params)
        return now, one_step(tx)(grads, *now)

    now, new = jax.eval_shape(stepped, tree_of_shapes(dtype), tree_of_shapes(dtype))
    assert new == now
    assert {leaf.dtype for leaf in jax.tree.leaves(new.params)} == {dtype}


def test_parameter_like_parts_are_found_by_optax(row, run):
    if "packed" in row.id:
        pytest.skip("a packed mask is a node, which no tree of parameters fits")
    state = run.moments[-1].state
    found = []

    def visit(leaf, param):
        if not isinstance(leaf, optax.MaskedNode) and leaf.shape in KERNEL_SHAPES:
            assert leaf.shape == param.shape
            found.append(KERNEL_SHAPES[leaf.shape])
        return leaf

    optax.tree.map_params(
        row.make(),
        visit,
        state,
        run.moments[-1].params,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    assert sorted(found) == sorted(name for name, _ in per_kernel(state))


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row.id in EAGER else pytest.mark.slow, id=row.id)
        for row in ROWS
    ],
    indirect=True,
)
def test_eager_equals_compiled(row, run):
    # One step, the first that updates the masks: there every operation compiles.
    updates = [
        count
        for count, (old, new) in enumerate(itertools.pairwise(run.moments))
        if old.changed_at != new.changed_at
    ]
    count = updates[0] if updates else 0
    eager = train(
        row,
        compiled=lambda function: function,
        steps=count + 1,
        begun=(count, run.moments[count]),
    )
    moment, expected = eager.moments[-1], run.moments[count + 1]
    chex.assert_trees_all_equal(moment.masks, expected.masks)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        moment.params,
        expected.params,
    )


# The result of a step.


def test_everything_stays_finite(run):
    for moment in run.moments:
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(moment.params))


def test_inactive_weights_are_exactly_zero(row, run):
    if row.stays_dense:
        pytest.skip("its masks are the forward pass's alone")
    for moment in run.moments:
        for name, mask in moment.masks.items():
            inactive = moment.kernel(name)[~mask]
            np.testing.assert_array_equal(inactive.view(np.int32), 0)


def test_active_weights_are_conserved(row, run):
    planned = {leaf.path: leaf.active for leaf in row.topology.leaves(tree_of_shapes())}
    if not row.topology.keeps_counts:
        # In the end the total number is the same.
        masks = run.moments[-1].masks
        assert sum(mask.sum() for mask in masks.values()) == sum(
            planned[f"{name}/kernel"] for name in masks
        )
        return
    for moment in run.moments:
        for name, mask in moment.masks.items():
            assert mask.sum() == planned[f"{name}/kernel"]


def test_every_active_weight_is_trained(run):
    first, *_, last = run.moments
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(first.params),
        jax.tree.leaves(last.params),
        strict=True,
    ):
        moved = np.asarray(old != new)
        if path[-1].key == "kernel":
            moved = moved[last.masks[path[0].key]]
        assert moved.mean() > 0.9, path


def test_masks_move_when_due_and_only_then(row, run):
    moved = [
        (old, new)
        for old, new in itertools.pairwise(run.moments)
        if any((old.masks[name] != new.masks[name]).any() for name in KERNELS)
    ]
    count = int(run.moments[-1].sparse.count)
    due = [step for step in range(count) if row.topology.due(step)]
    if row.id == "gradual_magnitude":
        due.pop(0)  # still at its first density
    assert [new.changed_at for _, new in moved] == due
    for old, new in moved:
        assert all((old.masks[name] != new.masks[name]).any() for name in KERNELS)


def test_grown_weights_start_at_zero_with_a_fresh_state(row, run):
    if not row.starts_fresh:
        pytest.skip("grows nothing, or does not own the optimizer")
    grown_weights = 0
    for old, new in changes(run):
        grown = {name: new.masks[name] & ~old.masks[name] for name in KERNELS}
        for name in KERNELS:
            grown_weights += grown[name].sum()
            np.testing.assert_array_equal(new.kernel(name)[grown[name]], 0.0)
        (fresh,) = sparse_states(row.make().init(new.params))
        for (name, state), (_, expected) in zip(
            per_kernel(new.sparse.inner_state),
            per_kernel(fresh.inner_state),
            strict=True,
        ):
            np.testing.assert_array_equal(state[grown[name]], expected[grown[name]])
    assert grown_weights > 0


def test_regrown_weights_keep_value_and_state(row, run):
    one_by_one = row.starts_fresh and row.topology.keeps_counts
    if not (one_by_one and row.topology.replaces_step):
        pytest.skip("takes a step as well, or does not own the optimizer")
    regrown_weights = 0
    for old, new in changes(run):
        both = {name: old.masks[name] & new.masks[name] for name in KERNELS}
        for name, kept in both.items():
            active = old.masks[name].sum()
            dropped = int(row.topology.schedule.fraction(new.changed_at) * active)
            regrown_weights += dropped - (active - kept.sum())
            np.testing.assert_array_equal(
                new.kernel(name)[kept], old.kernel(name)[kept]
            )
        for (name, state), (_, expected) in zip(
            per_kernel(new.sparse.inner_state),
            per_kernel(old.sparse.inner_state),
            strict=True,
        ):
            np.testing.assert_array_equal(state[both[name]], expected[both[name]])
    assert regrown_weights > 0


# The arguments of the inner transformation.


def spy(seen):
    def update(updates, state, params=None, *, masks, **extra_args):
        del params
        seen.append(extra_args | {"masks": masks})
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.MultiSteps(tx, 1),
        lambda tx: optax.apply_if_finite(tx, 1),
        lambda tx: optax.masked(tx, True),
        lambda tx: optax.partition({"all": tx}, "all"),
    ],
    ids=["alone", "chain", "MultiSteps", "apply_if_finite", "masked", "partition"],
)
def test_extra_arguments_reach_the_inner_transformation(wrap):
    seen = []
    tx = wrap(so.sparsify(spy(seen), rigl()))
    params = random_tree(0)
    state = tx.init(params)
    tx.update(gradients(0), state, params, batch_stats=BATCH_STATS, unknown=1)
    # Frozen leaves are detected earlier, without the caller's extra arguments.
    assert seen[-1]["batch_stats"] is BATCH_STATS
    assert seen[-1]["unknown"] == 1
    assert types(seen[-1]["masks"]) == types(so.get_masks(state))


# Without sparsity, only the inner optimizer is left.


@pytest.mark.parametrize("inner", quickly(INNER))
def test_at_sparsity_zero_it_is_the_inner_optimizer(inner):
    tx = INNER[inner]()
    owner = so.sparsify(tx, so.static(0.0))
    params = random_tree(0)
    alone = Moment(params, tx.init(params))
    inside = start(owner, params)
    alone_step = jax.jit(one_step(tx))
    inside_step = jax.jit(one_step(owner))
    for count in range(4):
        alone = alone_step(gradients(count), *alone)
        inside = inside_step(gradients(count), *inside)
        chex.assert_trees_all_equal(inside.params, alone.params)
        chex.assert_trees_all_equal(inside.sparse.inner_state, alone.state)
