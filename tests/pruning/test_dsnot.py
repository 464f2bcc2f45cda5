"""DSnoT: exchanges worked by hand, and what no exchange may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparseopt_jax as so


def draw(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def dense(params, x):
    return x @ params["kernel"]


def mean_errors(params, dense_params, x):
    difference = np.asarray(dense_params, np.float64) - np.asarray(params, np.float64)
    return np.abs(np.asarray(x, np.float64).mean(0) @ difference)


def test_one_exchange_by_hand():
    # E[x] = 1 2 3 1, Var[x] = 1 1 4 1; the error is w_2 E[x_2] + w_3 E[x_3] = 6 + 4.
    # For their variance these are 1.5 and 4: w_3 comes back, and leaves 6. To go:
    # w_1 E[x_1] = -2 takes it to 4, w_0 E[x_0] = 1 would add to it.
    kernel = jnp.array([[1.0], [-1.0], [2.0], [4.0]])
    mean, deviation = jnp.array([1.0, 2.0, 3.0, 1.0]), jnp.array([1.0, 1.0, 2.0, 1.0])
    x = jnp.stack([mean + deviation, mean - deviation])
    mask = jnp.array([[True], [True], [False], [False]])
    calibration = so.calibrate(dense, {"kernel": kernel}, [x])
    refined = so.dsnot(
        {"kernel": jnp.where(mask, kernel, 0)},
        {"kernel": mask},
        calibration,
        {"kernel": kernel},
        cycles=1,
    )
    np.testing.assert_array_equal(refined.masks["kernel"][:, 0], [1, 0, 0, 1])
    np.testing.assert_array_equal(refined.params["kernel"][:, 0], [1, 0, 0, 4])
    # Now w_2 should come back, but w_0 and w_3, which could be dropped, would add to
    # the error.
    more = so.dsnot(*refined, calibration, {"kernel": kernel}, cycles=9)
    np.testing.assert_array_equal(more.masks["kernel"], refined.masks["kernel"])


def test_of_inputs_without_variance_the_largest_gain_grows():
    kernel, x = jnp.array([[-1.0], [1.0], [1.0]]), jnp.array([[1.0, 5.0, 50.0]])
    mask = jnp.array([[True], [False], [False]])
    calibration = so.calibrate(dense, {"kernel": kernel}, [x])
    refined = so.dsnot(
        {"kernel": kernel}, {"kernel": mask}, calibration, {"kernel": kernel}
    )
    np.testing.assert_array_equal(refined.masks["kernel"][:, 0], [0, 0, 1])


@pytest.mark.parametrize("method", ["magnitude", "wanda", "random", "sparsegpt"])
def test_fan_ins_stay_and_no_mean_error_grows(method):
    x = draw((100, 32)) * jnp.exp(draw((32,), 1)) + draw((32,), 2)
    kernel = draw((32, 16), 3)
    params = {"kernel": kernel, "bias": jnp.ones(16)}
    calibration = so.calibrate(dense, params, [x])
    pruned = so.prune(params, method, sparsity=0.6, calibration=calibration)
    refined = so.dsnot(*pruned, calibration, params)
    before, after = np.asarray(pruned.masks["kernel"]), refined.masks["kernel"]
    after = np.asarray(after)
    np.testing.assert_array_equal(after.sum(0), before.sum(0))
    errors = [mean_errors(p.params["kernel"], kernel, x) for p in (pruned, refined)]
    assert (errors[1] <= errors[0] + 1e-5).all()
    assert errors[1].sum() < 0.5 * errors[0].sum()
    new = np.asarray(refined.params["kernel"])
    assert not new[~after].any() and (before != after).any()
    np.testing.assert_array_equal(new[after & ~before], kernel[after & ~before])
    kept = np.asarray(pruned.params["kernel"])[after & before]
    np.testing.assert_array_equal(new[after & before], kept)
    np.testing.assert_array_equal(refined.params["bias"], 1)


def test_grouped_convolutions():
    images = draw((3, 5, 5, 4)) + 1
    params = {"conv": {"kernel": draw((3, 3, 2, 6), 1)}}

    def apply(params, x):
        return jax.lax.conv_general_dilated(
            x,
            params["conv"]["kernel"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=2,
        )

    calibration = so.calibrate(apply, params, [images], gram=False)
    pruned = so.prune(params, "wanda", sparsity=0.5, calibration=calibration)
    refined = so.dsnot(*pruned, calibration, params)
    counts = refined.masks["conv"]["kernel"].sum((0, 1, 2))
    np.testing.assert_array_equal(counts, 9)

    def error(tree):
        difference = apply(params, images) - apply(tree, images)
        return np.abs(np.asarray(difference.mean((0, 1, 2))))

    assert (error(refined.params) <= error(pruned.params) + 1e-5).all()
    assert error(refined.params).sum() < 0.5 * error(pruned.params).sum()


def test_threshold_cycles_and_where():
    x = draw((100, 32)) + 1
    params = {"kernel": draw((32, 16), 3)}
    calibration = so.calibrate(dense, params, [x])
    pruned = so.prune(params, sparsity=0.5)

    def moved(**kwargs):
        refined = so.dsnot(*pruned, calibration, params, **kwargs)
        return np.asarray(refined.masks["kernel"] & ~pruned.masks["kernel"]).sum(0)

    assert (moved(cycles=1) <= 1).all() and moved(cycles=1).any()
    assert moved().sum() > moved(cycles=1).sum()
    assert not moved(threshold=1e6).any()
    assert not moved(where=lambda path, leaf: False).any()


def test_what_it_refuses():
    x, params = draw((9, 8)) + 1, {"kernel": draw((8, 4), 3)}
    calibration = so.calibrate(dense, params, [x])
    pruned = so.prune(params, sparsity=0.5)

    def refuses(match, *args, error=ValueError, **kwargs):
        with pytest.raises(error, match=match):
            so.dsnot(*args, **kwargs)

    refuses("the result of so.calibrate", *pruned, {}, params, error=TypeError)
    refuses("cycles must be at least 1", *pruned, calibration, params, cycles=0)
    refuses(
        "threshold must be at least 0", *pruned, calibration, params, threshold=-1.0
    )
    refuses("structure of params: at 'kernel'", *pruned, calibration, {})
    mask = {"kernel": jnp.ones((4, 8), bool)}
    refuses("the mask at 'kernel' has shape", params, mask, calibration, params)
    broken = so.calibrate(dense, params, [x.at[0, 0].set(jnp.nan)])
    refuses("dsnot: .* 'kernel' are not finite", *pruned, broken, params)
    other = {"other": params["kernel"]}
    refuses(
        "dsnot needs statistics of the inputs of 'other'",
        *so.prune(other, sparsity=0.5),
        calibration,
        other,
    )
