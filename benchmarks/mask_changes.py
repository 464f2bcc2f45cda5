"""An update of the masks of ten million weights, by every method.

    python -m benchmarks.mask_changes

It is compared with the same update by sorting; both must give the same masks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.method_arms import ARMS, QUICK, Arm, When
from benchmarks.method_changes import begin, change, change_by_sorting, masks_of
from reporting import harness

KERNEL = (3200, 3136)
LIBRARY, SORTING = "topology.update", "argsort"
SLOWER_BY_SORTING = 10.0


def kernels(shape: tuple[int, int], parts: int, seed: int) -> dict[str, jax.Array]:
    """Draw normal numbers as kernels (inputs, neurons) with a given total size."""
    draw = np.random.default_rng(seed).standard_normal
    inputs, neurons = shape
    return {
        f"kernel_{part}": jnp.asarray(draw((inputs // parts, neurons), np.float32))
        for part in range(parts)
    }


def time_change(
    report: harness.Report, arm: Arm, shape: tuple[int, int], rounds: int
) -> None:
    """Time an update of large masks, by the library and by sorting.

    For methods that compare layers with each other, the weights are split in two
    layers.
    """
    when = When(every=100, stop=1000)
    method: Any = arm.build(when, misfits=False)
    layers = 2 if method.crosses_layers else 1
    params, grads = (kernels(shape, layers, seed) for seed in (0, 1))
    count = arm.change_at(when)
    state, params = begin(method, params, grads, count)
    ours = jax.jit(functools.partial(change, method), donate_argnums=0)
    theirs = jax.jit(functools.partial(change_by_sorting, method, count))
    candidates = [
        # A separate state each time, because it is donated.
        harness.Candidate(
            LIBRARY, lambda: ours(jax.tree.map(jnp.copy, state), params, grads)
        ),
        harness.Candidate(SORTING, lambda: theirs(state, params, grads), every=2),
    ]

    def check(results):
        found, expected = masks_of(results[LIBRARY]), results[SORTING]
        check_same(arm, found, expected)

    timings = harness.measure(candidates, rounds, check)
    size = sum(kernel.size for kernel in params.values())
    title = f"{arm.label}: a change of {size:,} weights"
    report.table(title, timings, LIBRARY, method=arm.label, weights=size)
    # There are so few channels that sorting them costs nothing.
    limit = None if arm.structure == "channels" else SLOWER_BY_SORTING
    ratio = timings[SORTING].ratio(timings[LIBRARY]).median
    report.claim(f"{arm.label}: {SORTING} / {LIBRARY}", ratio, at_least=limit)


def check_same(arm: Arm, found: Any, expected: Any) -> None:
    """Raise unless both ways have made the same masks.

    Another program may round sums differently: over blocks and channels, which may swap
    two of them, and over layers, which may swap a few weights.
    """
    for mask, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        allowed = {"blocks of 1x4": 2 * 4, "channels": 2 * mask.shape[0]}
        limit = allowed.get(arm.structure, 0)
        if arm.method == "SNFS":
            limit = mask.size // 100_000
        differing = int((mask != other).sum())
        if differing > limit:
            raise AssertionError(
                f"{arm.label}: {LIBRARY} and {SORTING} differ in {differing} weights"
            )


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.mask_changes", options)
    shape = (32, 16) if options.quick else KERNEL
    for label in QUICK if options.quick else ARMS:
        if ARMS[label].moves:
            time_change(report, ARMS[label], shape, options.rounds_or(4))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
