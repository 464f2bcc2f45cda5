"""Figures 5 and 10: how much RigL explores, depending on the gradient for growth.

    python -m studies.paper.explored

What the paper shows, for ResNet-50 on ImageNet over 270 epochs: RigL explores slightly
more if SparseOpt corrects the gradient of the weights, and much less if the corrected
gradient also decides what grows. Hence its advice to grow by the original gradient.

What is measured here, on scanned digits with the ResNet of the examples: the fraction
of the maskable weights that have ever been active at the end of training, for RigL
alone, with the correction for the weights, and with the correction for both
(``so.rigl(corrected_growth=True)``). Arms of one seed share weights, masks and batches.
The claims are about directions, since sizes depend on the network and on the number of
updates: 30 here.

What the paper leaves open, and we chose: the Erdős-Rényi-kernel distribution and RigL's
settings, which are those of ``examples/digits``.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import sparseopt_jax as so
from examples.digits.training import train_step
from reporting import harness
from reporting.figures import COLORS, legend, panels
from studies.paper.digits_runs import Runs, config, topology
from studies.paper.report import Report

SPARSITIES, SEEDS = (0.90, 0.95, 0.97), 5
# For each arm, whether the correction is on, and whether growth uses it.
ARMS = {
    "RigL": (False, False),
    "corrected weights": (True, False),
    "corrected weights and growth": (True, True),
}
BASELINE, WEIGHTS, BOTH = ARMS
# Percent of the maskable weights, read from the authors' figures.
FIGURE = {
    BASELINE: {0.90: 74.4, 0.95: 54.1, 0.97: 39.9},
    WEIGHTS: {0.90: 75.3, 0.95: 55.6, 0.97: 42.8},
    BOTH: {0.90: 61.1, 0.95: 39.6, 0.97: 27.1},
}


def explored(runs: Runs, step: Any, seed: int) -> tuple[float, float]:
    """Return the explored fraction and the accuracy at the end of one run."""
    state = runs.start(seed)
    for batch in runs.batches(seed):
        state, _ = step(state, *batch)
    numbers = so.metrics(state.params, state.opt_state)
    return float(numbers["explored"]), runs.accuracy(state)


def row_of(
    arm: str, sparsity: float, outcomes: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Summarise the runs of an arm, in percent."""
    fractions, accuracies = ([100 * x for x in each] for each in zip(*outcomes))  # noqa: B905
    return {
        "arm": arm,
        "sparsity": sparsity,
        "explored": [round(fraction, 3) for fraction in fractions],
        "explored_mean": round(statistics.mean(fractions), 2),
        "explored_sd": _deviation(fractions),
        "accuracy_mean": round(statistics.mean(accuracies), 2),
        "accuracy_sd": _deviation(accuracies),
        "paper": FIGURE[arm].get(sparsity),
    }


def _deviation(values: Sequence[float]) -> float | None:
    return round(statistics.stdev(values), 2) if len(values) > 1 else None


def paired(ours: Sequence[float], other: Sequence[float]) -> float:
    """Return the mean difference of runs that share their seeds.

    >>> paired([3.0, 5.0], [2.0, 2.0])
    2.0
    """
    return statistics.mean(a - b for a, b in zip(ours, other, strict=True))


def judge(report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the claims: directions, at each sparsity."""
    by_arm = {(row["arm"], row["sparsity"]): row["explored"] for row in rows}
    for sparsity in dict.fromkeys(row["sparsity"] for row in rows):
        base = by_arm[BASELINE, sparsity]
        more = paired(by_arm[WEIGHTS, sparsity], base)
        what = f"sparsity {sparsity:g}: {WEIGHTS} - {BASELINE}, points"
        report.published(what, more, at_least=0.0)
        less = paired(by_arm[BOTH, sparsity], base)
        what = f"sparsity {sparsity:g}: {BOTH} - {BASELINE}, points"
        report.published(what, less, at_most=-1.0)


def draw(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draw bars of the arms at each sparsity, next to the paper's."""
    figure, places = panels(1, 2, (9, 3.6))
    sparsities = list(dict.fromkeys(row["sparsity"] for row in rows))
    titles = ("here: ResNet, digits", "the paper: ResNet-50, ImageNet")
    for axes, key, title in zip(
        places[0], ("explored_mean", "paper"), titles, strict=True
    ):
        for index, arm in enumerate(ARMS):
            arm_rows = [row for row in rows if row["arm"] == arm]
            x = [place + 0.27 * (index - 1) for place in range(len(sparsities))]
            error = [row["explored_sd"] or 0 for row in arm_rows]
            axes.bar(
                x,
                [row[key] for row in arm_rows],
                0.25,
                yerr=error if key == "explored_mean" else None,
                color=COLORS[index],
                label=arm,
            )
        axes.set_xticks(range(len(sparsities)), [f"{s:g}" for s in sparsities])
        axes.set(title=title, xlabel="sparsity", ylim=(0, 100))
    places[0, 0].set_ylabel("weights ever active (%)")
    legend(places[0, 0])
    return figure


def main(options: harness.Options) -> None:
    """Run the study."""
    report = Report("studies.paper.explored", options)
    seeds = 1 if options.quick else SEEDS
    rows = []
    for sparsity in SPARSITIES[:1] if options.quick else SPARSITIES:
        of = config(sparsity, options.quick)
        for arm, (sparseopt, corrected_growth) in ARMS.items():
            rigl = topology(of, corrected_growth=corrected_growth)
            runs = Runs(of, rigl, sparseopt=sparseopt, quick=options.quick)
            step = jax.jit(train_step, donate_argnums=0)
            outcomes = [explored(runs, step, seed) for seed in range(seeds)]
            rows.append(row_of(arm, sparsity, outcomes))
            mean = rows[-1]["explored_mean"]
            print(f"  {sparsity:g}, {arm}: {mean:.1f} %", flush=True)
    report.listing(f"explored, percent, {seeds} seeds", rows)
    judge(report, rows)
    report.picture(draw(rows))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
