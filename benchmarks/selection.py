"""Exact top-k selection: ``top_k_mask`` against implementations that sort.

    python -m benchmarks.selection

A tenth of 1 and of 10 million float32 scores is selected, in one array and in 40. All
implementations must give the same mask before they are timed. One read of the scores,
by a sum or a maximum, is timed next to them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from reporting import harness
from sparseopt_jax.arrays.selection import top_k_mask

DENSITY = 0.1
TIES = "top_k_mask, ties"
Select = Callable[[jax.Array, int], jax.Array]
Leaves = list[jax.Array]


def by_argsort(scores: jax.Array, k: int) -> jax.Array:
    """Rank all scores, and scatter the first k."""
    order = jnp.argsort(scores, descending=True)
    return jnp.zeros(scores.shape, bool).at[order[:k]].set(True)


def by_sort_threshold(scores: jax.Array, k: int) -> jax.Array:
    """Sort the values, and compare with the k-th: selects too many if it is tied."""
    return scores >= jnp.sort(scores)[-k]


def by_lax_top_k(scores: jax.Array, k: int) -> jax.Array:
    """Find the indices of the k largest, and scatter them."""
    _, places = jax.lax.top_k(scores, k)
    return jnp.zeros(scores.shape, bool).at[places].set(True)


# Each is timed in one round of this many calls.
SORTS: dict[str, tuple[Select, int]] = {
    "argsort": (by_argsort, 5),
    "sort, threshold": (by_sort_threshold, 2),
    "lax.top_k": (by_lax_top_k, 5),
}


def kept(leaf: jax.Array) -> int:
    """Count the selected scores of a leaf."""
    return math.ceil(DENSITY * leaf.size)


def over_leaves(select: Select) -> Callable[[Leaves], Leaves]:
    """Return one compiled program that selects in every leaf."""
    return jax.jit(lambda leaves: [select(leaf, kept(leaf)) for leaf in leaves])


def make_scores(size: int, leaves: int, *, rounded: bool = False) -> Leaves:
    """Draw half-normal scores, split equally.

    Args:
      size: total number of scores.
      leaves: number of arrays to split them into.
      rounded: whether to round to two decimals, for a great many ties; otherwise each
        leaf's k-th largest score is unique.

    Returns:
      float32 arrays.
    """
    scores = np.abs(np.random.default_rng(0).standard_normal(size, dtype=np.float32))
    parts = np.split(np.round(scores, 2) if rounded else scores, leaves)
    if not rounded:
        for part in parts:
            separate(part, math.ceil(DENSITY * part.size))
    return [jnp.asarray(part) for part in parts]


def separate(scores: np.ndarray, k: int) -> None:
    """Move unselected scores off the k-th largest, by one float, in place."""
    order = np.argpartition(-scores, k - 1)
    threshold = scores[order[k - 1]]
    rest = order[k:]
    tied = rest[scores[rest] == threshold]
    scores[tied] = np.nextafter(threshold, np.float32(0))


def check_same(masks: dict[str, Leaves]) -> None:
    """Raise unless all masks equal the first, with k True in every leaf."""
    (first, expected), *others = masks.items()
    for mask in expected:
        if int(mask.sum()) != kept(mask):
            raise AssertionError(f"{first} selects {int(mask.sum())} of {mask.size}")
    for name, found in others:
        pairs = zip(found, expected, strict=True)
        if not all(np.array_equal(mask, other) for mask, other in pairs):
            raise AssertionError(f"{name} and {first} give different masks")


def compare(report: harness.Report, size: int, leaves: int, rounds: int) -> None:
    """Check and time all implementations on scores of one size."""
    scores = make_scores(size, leaves)
    tied = make_scores(size, leaves, rounded=True)
    ours = over_leaves(top_k_mask)
    others = {name: (over_leaves(way), every) for name, (way, every) in SORTS.items()}
    reads: dict[str, Callable[[Leaves], Leaves]] = {
        f"one read, {reduce.__name__}": jax.jit(functools.partial(jax.tree.map, reduce))
        for reduce in (jnp.max, jnp.sum)
    }

    def check(results: dict[str, Leaves]) -> None:
        check_same({name: results[name] for name in ("top_k_mask", *SORTS)})
        stable = {name: others[name][0](tied) for name in ("argsort", "lax.top_k")}
        check_same({TIES: results[TIES]} | stable)

    candidates = [
        harness.Candidate("top_k_mask", lambda: ours(scores)),
        harness.Candidate(TIES, lambda: ours(tied)),
        *(
            harness.Candidate(name, functools.partial(read, scores))
            for name, read in reads.items()
        ),
        *(
            harness.Candidate(name, functools.partial(way, scores), every=every)
            for name, (way, every) in others.items()
        ),
    ]
    timings = harness.measure(candidates, rounds, check)
    title = f"{size:,} scores in {leaves} array{'s' if leaves > 1 else ''}"
    report.table(title, timings, "top_k_mask", scores=size, arrays=leaves)
    report_claims(report, title, size, timings, list(reads))


def report_claims(
    report: harness.Report,
    title: str,
    size: int,
    timings: dict[str, harness.Timing],
    reads: Sequence[str],
) -> None:
    """Report ratios to the sorts and to a single read."""
    ours = timings["top_k_mask"]
    for name in SORTS:
        asked = 10.0 if name == "argsort" and size >= 10_000_000 else None
        ratio = timings[name].ratio(ours).median
        report.claim(f"{title}: {name} / top_k_mask", ratio, at_least=asked)
    passes = max(ours.ratio(timings[name]).median for name in reads)
    report.claim(f"{title}: top_k_mask / one read", passes)


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.selection", options)
    sizes = (4_000,) if options.quick else (1_000_000, 10_000_000)
    splits = (1, 4) if options.quick else (1, 40)
    for size, leaves in itertools.product(sizes, splits):
        compare(report, size, leaves, options.rounds_or(15))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
