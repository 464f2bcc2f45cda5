"""Does correcting gradients help, and when: no correction against others, by seed.

    python -m studies.convergence

A perceptron with Batch Normalization learns synthetic images in 100 classes, sparse,
and a small ResNet scanned digits, in a number of conditions: one that is the rule, and
others that differ from it in one thing, where the sources say, or our earlier trials,
that it matters. In each the gradient is left alone, corrected by fan-in (the paper's
rule), by the variances that Batch Normalization measures, or by the norms of the
weights (ours).

How it is made fair, and repeatable:

- What decides was fixed before anything was compared: the accuracy after the last
  epoch, after a ninth of them, and the epochs until a test accuracy is reached.
- Every arm of every condition has the same tuning budget: five learning rates, a factor
  of 2 apart, two seeds each, which no other run has. They are judged by training images
  that are left out, never by the test images.
- Then each arm trains with the same seeds. A seed decides the weights, the masks and
  the order of the images, the same for all arms, and differences are taken by seed.
- Given are the mean difference, the interval that covers it in 95 of 100 such
  experiments, and the p-value of the paired t-test; and that by Holm's method, for as
  many tests as there are of one kind: of many, one in twenty falls below 0.05 with no
  difference at all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from reporting import harness
from reporting.paired import difference, holm
from studies.convergence.conditions import CONDITIONS, Condition
from studies.convergence.picture import draw
from studies.convergence.runs import Network, Outcome, Trainer, networks

SEEDS, TUNING_SEEDS = 8, (1_000, 1_001)


def tuned(
    run: Callable[[float, int], Outcome], rates: Sequence[float], seeds: Sequence[int]
) -> tuple[float, list[dict[str, Any]]]:
    """The rate of the highest mean accuracy, the lower of equals, and all tried.

    Args:
      run: trains with a rate and a seed.
      rates: those to try.
      seeds: each rate's.

    Returns:
      The rate, and a row for each.
    """
    rows = [
        {
            "rate": rate,
            "accuracy": float(np.mean([run(rate, seed).accuracy for seed in seeds])),
        }
        for rate in rates
    ]
    best = max(rows, key=lambda row: (row["accuracy"], -row["rate"]))["rate"]
    return best, [row | {"best": row["rate"] == best} for row in rows]


def summary(
    rate: float,
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    target: float | None,
) -> dict[str, Any]:
    """A row for one arm, compared with the uncorrected one.

    Args:
      rate: its learning rate.
      outcomes: its runs, by seed.
      others: those of the uncorrected arm, by seed.
      target: the accuracy whose epochs are counted.

    Returns:
      Means, differences, and under ``epochs_ratio`` the geometric mean of the ratios of
      epochs over the seeds with which both reach the target.
    """
    accuracies = [own.accuracy for own in outcomes]
    pairs = []
    if target is not None:
        epochs = [
            [own.epochs_to(target) for own in runs] for runs in (outcomes, others)
        ]
        pairs = [(a, b) for a, b in zip(*epochs, strict=True) if a and b]
    ratio = float(np.exp(np.mean([np.log(a / b) for a, b in pairs]))) if pairs else None

    def compared(what: str) -> dict[str, float]:
        runs = ([getattr(own, what) for own in arm] for arm in (outcomes, others))
        return difference(*runs)

    early = compared("early_accuracy")
    return {
        "rate": rate,
        "accuracy": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)),
        **compared("accuracy"),
        "early_accuracy": float(np.mean([own.early_accuracy for own in outcomes])),
        "early_mean": early["mean"],
        "early_p": early["p"],
        "early_loss": float(np.mean([own.early_loss for own in outcomes])),
        "target": target,
        "both_reach_it": len(pairs),
        "epochs_ratio": ratio,
        "fan_in_spread": float(np.mean([own.fan_in_spread for own in outcomes])),
    }


def compare(
    report: harness.Report,
    network: Network,
    condition: Condition,
    rates: dict[str, dict[str, float]],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Trains all arms of a condition; adds what was tried and what came out.

    Args:
      report: what it is added to.
      network: what is trained.
      condition: how.
      rates: the learning rates that were chosen, by condition and arm; gets this one's.
      seeds: of the runs that are compared.

    Returns:
      A row for each arm.
    """
    tuning_seeds = TUNING_SEEDS[:1] if report.options.quick else TUNING_SEEDS
    data, tried, rows = network.data, [], []
    target = network.targets.get(condition.sparsity)
    rates[condition.name], uncorrected, curves = {}, None, []
    for arm in condition.arms:
        trainer = Trainer(network, condition, arm)
        if condition.like is not None:
            rate = rates[condition.like][arm]
        else:
            rate, own = tuned(
                lambda rate, seed, own=trainer: own.run(rate, seed, data.validation),
                *(condition.rates or network.rates, tuning_seeds),
            )
            tried += [{"arm": arm, **row} for row in own]
        rates[condition.name][arm] = rate
        outcomes = [trainer.run(rate, seed, data.test) for seed in seeds]
        uncorrected = uncorrected or outcomes
        rows.append({"arm": arm, **summary(rate, outcomes, uncorrected, target)})
        curves.append([outcome.accuracies for outcome in outcomes])
        print(f"  {condition.name}, {arm}: {rows[-1]['accuracy']:.4f}", flush=True)
    if tried:
        report.listing(f"{condition.name}: learning rates tried", tried)
    report.listing(f"{condition.name}: {len(seeds)} seeds", rows)
    # Last, since it is no table to look at.
    record = {"condition": condition._asdict(), "arms": rows, "accuracies": curves}
    report.record.setdefault("conditions", []).append(record)
    return rows


def judge(report: harness.Report, rows: Mapping[str, Sequence[Mapping[str, Any]]]):
    """Adds what came out: a claim is met where the interval lies above 0."""
    tests = [(name, row) for name, own in rows.items() for row in own[1:]]
    together = holm([row["p"] for _, row in tests])
    told = [
        {"condition": name, "arm": row["arm"], "p": row["p"], "holm": p}
        for (name, row), p in zip(tests, together, strict=True)
    ]
    report.listing("p-values, and of all tests together", told)
    for name, row in tests:
        what = f"{name}: accuracy with {row['arm']} minus without, lower end"
        report.claim(what, row["low"], at_least=0.0)


def run(name: str, options: harness.Options, conditions: Sequence[Condition]) -> None:
    """Compares the arms of conditions, and stores what comes out.

    Args:
      name: of the record.
      options: as for all benchmarks; a quick run has the first condition alone.
      conditions: in an order in which none is ``like`` a later one.
    """
    report = harness.Report(name, options)
    available, rates, rows = networks(options.quick), {}, {}
    seeds = range(2 if options.quick else SEEDS)
    for condition in conditions[:1] if options.quick else conditions:
        network = available[condition.network]
        rows[condition.name] = compare(report, network, condition, rates, seeds)
    judge(report, rows)
    report.picture(draw(report.record["conditions"]))
    report.store()


def main(options: harness.Options) -> None:
    """Runs the benchmark."""
    run("convergence", options, CONDITIONS)


if __name__ == "__main__":
    main(tyro.cli(harness.Options, description=__doc__))
