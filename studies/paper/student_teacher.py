"""Figures 6 to 9: one or two neurons with Batch Normalization that learn another one.

    python -m studies.paper.student_teacher

What the paper says of its simulations (appendix A), with f(z) = a relu(gamma xhat +
beta) and a start of gamma = 1, beta = 0, a = 1 or -1:

1. gradient flow preserves a^2 - gamma^2 - beta^2, with or without masks and rescaling;
2. so a cannot flip its sign; HAM on a alone makes that possible;
3. at eta 0.01 (10,000 steps) rescaling the gradient of a sparse w makes no difference;
   at eta 0.1 (1,000 steps) it converges faster;
4. of a dense and a sparse neuron that learn one sparse neuron, rescaling can switch off
   the redundant dense one (Fig. 9).

Numbers of inputs, densities and the strength of HAM are not given: a small grid of them
is run, with 32 seeds each (16 for two neurons), and the tables show where a claim
holds. ``student`` lists our other choices. Rescaling is by sqrt(1 - s): SparseOpt's own
rule, which divides by the layer's mean, leaves a layer of one neuron unchanged. For two
neurons both are tried.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reporting import harness
from reporting.figures import COLORS, legend, panels
from studies.paper.report import Report
from studies.paper.student import (
    TARGET,
    Lane,
    Outcome,
    make_task,
    own_factor,
    rule_factors,
    train,
)
from studies.paper.student_measures import (
    SCALINGS,
    Arm,
    Cell,
    first_sizes,
    one_neuron,
    two_neurons,
)

SEEDS, TWO_SEEDS, POINTS = 32, 16, 50
CELLS: tuple[Cell, ...] = ((20, 2), (20, 6), (100, 10))
TWO_CELLS: tuple[Cell, ...] = ((20, 2), (20, 6))
ALPHAS, TWO_ALPHAS = (0.0, 1.0, 10.0, 100.0), (0.0, 10.0)
SIZES = (1.0, 0.3, 0.1, 0.03)  # of the initial weights
STEPS = {0.01: 10_000, 0.1: 1_000}
SMALL = 0.001  # a learning rate for the invariant, over a tenth of the time


def lanes_of(arms: Sequence[Arm], inputs: int, active: int) -> Lane:
    """Return the arms as arrays; the last neuron is the sparse one."""

    def factors(arm: Arm) -> np.ndarray:
        plain = np.ones(len(arm.signs))
        if arm.scaling == "own":
            plain[-1] = own_factor(active, inputs)
        elif arm.scaling == "rule":
            mask = np.ones((inputs, len(arm.signs)), bool)
            mask[active:, -1] = False
            plain = np.array(rule_factors(jnp.asarray(mask)))
        return plain

    return Lane(
        sign=jnp.asarray(np.array([arm.signs for arm in arms], np.float32).T),
        factor=jnp.asarray(np.array([factors(arm) for arm in arms], np.float32).T),
        alpha=jnp.asarray([arm.alpha for arm in arms], jnp.float32),
        size=jnp.asarray([arm.size for arm in arms], jnp.float32),
    )


def simulate(
    arms: Sequence[Arm], cell: Cell, seeds: int, eta: float, steps: int
) -> dict[Arm, Outcome]:
    """Return outcomes of every seed, by arm."""
    inputs, active = cell
    dense = len(arms[0].signs) - 1
    keys = jax.random.split(jax.random.key(0), seeds)
    tasks = jax.vmap(lambda key: make_task(key, inputs, active, dense))(keys)
    lanes = lanes_of(arms, inputs, active)
    points = min(POINTS, steps)
    found = jax.device_get(train(tasks, lanes, eta=eta, steps=steps, points=points))
    return {
        arm: Outcome(*(np.asarray(field)[..., index] for field in found))
        for index, arm in enumerate(arms)
    }


def judge_one(
    report: Report, rows: Sequence[dict[str, Any]], drifts: tuple[float, float]
) -> None:
    """Add claims 1 to 3."""
    small, large = drifts
    what = f"eta {SMALL:g}, no HAM, masked and rescaled: largest |a² - γ² - β²|"
    report.published(what, small, at_most=0.01)
    what = f"the same at eta {10 * SMALL:g} over the same time / at eta {SMALL:g}"
    report.claim(what, large / small, at_least=5.0)
    for eta in STEPS:
        same_eta = [row for row in rows if row["eta"] == eta]
        plain = [
            r[key]
            for r in same_eta
            if not r["alpha"]
            for key in ("flips", "flips_scaled")
        ]
        what = f"eta {eta:g}, no HAM: largest share of runs whose a changes its sign"
        if eta == min(STEPS):
            report.published(what, max(plain), at_most=0.0)
        else:
            report.claim(what, max(plain), at_most=0.0)
        for alpha in dict.fromkeys(row["alpha"] for row in same_eta if row["alpha"]):
            flipped = [row["flips"] for row in same_eta if row["alpha"] == alpha]
            what = f"eta {eta:g}, HAM {alpha:g} on a: mean share of runs that flip"
            report.claim(what, float(np.mean(flipped)))
        most = max(row["flips"] for row in same_eta if row["alpha"])
        what = f"eta {eta:g}, HAM on a: largest share of runs that flip in the grid"
        report.published(what, most, at_least=0.1)
    slow, fast = ([r for r in rows if r["eta"] == eta] for eta in STEPS)
    what = "eta 0.01: mean share of runs that end alike with and without rescaling"
    report.published(what, float(np.mean([r["same_end"] for r in slow])), at_least=0.95)
    ratios = [row["steps_ratio"] for row in slow if row["steps_ratio"] is not None]
    what = "eta 0.01: steps rescaled / as they are, median over the grid"
    report.claim(what, float(np.median(ratios)) if ratios else 0.0)
    ratios = [row["steps_ratio"] for row in fast if row["steps_ratio"] is not None]
    what = "eta 0.1: share of the grid where rescaling converges in fewer steps"
    share = float(np.mean([ratio < 1 for ratio in ratios])) if ratios else 0.0
    report.published(what, share, at_least=0.5)
    what = "eta 0.1: steps rescaled / as they are, median over the grid"
    report.claim(what, float(np.median(ratios)) if ratios else 0.0)


def judge_sizes(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    """Add claim 3 by the size of the initial weights."""
    for eta in STEPS:
        for size in dict.fromkeys(row["size"] for row in rows):
            ratios = [
                row["steps_ratio"]
                for row in rows
                if (row["eta"], row["size"]) == (eta, size) and row["steps_ratio"]
            ]
            what = (
                f"eta {eta:g}, first weights x {size:g}: steps rescaled / as they are"
            )
            report.claim(what, float(np.mean(ratios)) if ratios else 0.0)


def judge_two(report: Report, rows: Sequence[dict[str, Any]]) -> None:
    """Add claim 4."""
    for scaling in SCALINGS[1:]:
        more = [row[f"off_{scaling}"] - row["off_none"] for row in rows]
        what = f"two neurons, scaling {scaling!r}: dense neuron off, more of the runs"
        report.claim(what, float(np.mean(more)))
        cells = float(np.mean([value > 0 for value in more]))
        report.claim(f"two neurons, scaling {scaling!r}: share of the grid", cells)
    switched = max(max(r["switched_own"], r["switched_rule"]) for r in rows)
    what = "two neurons: largest share of runs that rescaling alone switches off"
    report.published(what, switched, at_least=0.1)
    kept = max(max(r["kept_own"], r["kept_rule"]) for r in rows)
    what = "two neurons: largest share of runs where it keeps the dense one on instead"
    report.claim(what, kept)


def draw(one: dict[float, dict[Arm, Outcome]], two: Sequence[dict[str, Any]]) -> Any:
    """Draw losses and a along the way, and how often the dense neuron is off."""
    figure, places = panels(2, 2, (11, 6.6))
    for axes, eta in zip(places[0], one, strict=True):
        steps = np.linspace(
            0, STEPS[eta], next(iter(one[eta].values())).losses.shape[1]
        )
        for index, alpha in enumerate(dict.fromkeys(arm.alpha for arm in one[eta])):
            for scaling, style in zip(SCALINGS[:2], ("-", "--"), strict=True):
                outcome = one[eta][Arm(scaling, alpha, (1,))]
                label = f"HAM {alpha:g}, {'as it is' if style == '-' else 'rescaled'}"
                curve = np.median(outcome.losses, axis=0)
                axes.plot(steps, curve, style, color=COLORS[index], lw=1, label=label)
        axes.axhline(TARGET, color="0.5", lw=0.8, ls=":")
        axes.set(title=f"η = {eta:g}, a = 1: loss, median", yscale="log", xlabel="step")
    legend(places[0, 1], ncols=2)
    heights, bars = places[1]
    eta = min(one)
    for index, alpha in enumerate(dict.fromkeys(arm.alpha for arm in one[eta])):
        dense = one[eta][Arm("none", alpha, (-1,))].heights[:, :, 0]
        steps = np.linspace(0, STEPS[eta], dense.shape[1])
        for run, curve in enumerate(dense[:8]):
            label = None if run else f"HAM {alpha:g}"
            heights.plot(steps, curve, color=COLORS[index], lw=0.8, label=label)
    heights.axhline(0, color="k", lw=0.8)
    heights.set(title=f"η = {eta:g}, start at a = -1: a, 8 runs each", xlabel="step")
    legend(heights)
    starts = list(dict.fromkeys(row["start"] for row in two))
    for index, scaling in enumerate(SCALINGS):
        means = [
            np.mean([row[f"off_{scaling}"] for row in two if row["start"] == start])
            for start in starts
        ]
        place = np.arange(len(starts)) + 0.27 * (index - 1)
        bars.bar(place, means, 0.25, color=COLORS[index], label=scaling)
    bars.set_xticks(range(len(starts)), starts)
    bars.set(title="Dense neuron off, share of runs", xlabel="signs: dense, sparse")
    bars.set_ylim(0, 1.2)
    legend(bars, loc="upper center", ncols=3, title="rescaling")
    return figure


def invariant(cell: Cell, seeds: int, steps: int) -> tuple[float, float]:
    """Return the largest drift at the small rate, and at one ten times as large."""
    arms = [Arm(s, 0.0, (sign,)) for s in SCALINGS[:2] for sign in (1, -1)]
    small, large = (
        simulate(arms, cell, seeds, rate, count)
        for rate, count in ((SMALL, steps), (10 * SMALL, steps // 10))
    )
    worst = [
        max(outcome.drift.max() for outcome in found.values())
        for found in (small, large)
    ]
    return float(worst[0]), float(worst[1])


def main(options: harness.Options) -> None:
    """Run the study."""
    report = Report("studies.paper.student_teacher", options)
    quick = options.quick
    seeds, two_seeds = (2, 2) if quick else (SEEDS, TWO_SEEDS)
    alphas = TWO_ALPHAS if quick else ALPHAS
    steps = {eta: 20 for eta in STEPS} if quick else STEPS
    cells, two_cells = (CELLS[:1], TWO_CELLS[:1]) if quick else (CELLS, TWO_CELLS)
    signs = (1, -1)
    arms = [
        Arm(scaling, alpha, (sign,))
        for scaling in SCALINGS[:2]
        for alpha in alphas
        for sign in signs
    ]
    pairs = [
        Arm(scaling, alpha, (dense, sparse))
        for scaling in SCALINGS
        for alpha in TWO_ALPHAS
        for dense in signs
        for sparse in signs
    ]
    sizes = [
        Arm(scaling, 0.0, (1,), size) for scaling in SCALINGS[:2] for size in SIZES
    ]
    ones, twos, sized, shown = [], [], [], {}
    for eta, count in steps.items():
        for cell in cells:
            found = simulate(arms, cell, seeds, eta, count)
            ones += one_neuron(cell, eta, found)
            found_sizes = simulate(sizes, cell, seeds, eta, count)
            sized += first_sizes(cell, eta, found_sizes)
            if cell == cells[-1]:
                shown[eta] = found
            print(f"  one neuron, eta {eta:g}, {cell}: done", flush=True)
        for cell in two_cells:
            found = simulate(pairs, cell, two_seeds, eta, count)
            twos += two_neurons(cell, eta, found)
            print(f"  two neurons, eta {eta:g}, {cell}: done", flush=True)
    drifts = invariant(cells[0], seeds, 20 if quick else 10_000)
    report.listing(f"one neuron, {seeds} seeds", ones, kind="one_neuron")
    title = f"one neuron by the size of its first weights, {seeds} seeds"
    report.listing(title, sized, kind="first_sizes")
    title = f"a dense neuron and a sparse one, {two_seeds} seeds"
    report.listing(title, twos, kind="two_neurons")
    judge_one(report, ones, drifts)
    judge_sizes(report, sized)
    judge_two(report, twos)
    report.picture(draw(shown, twos))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
