"""Compare the arms of conditions: tune each, and train all with the same seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from reporting import harness
from reporting.statistics import difference, holm
from studies.convergence.conditions import Condition
from studies.convergence.runs import Network, Outcome, Trainer, networks

SEEDS, TUNING_SEEDS = 8, (1_000, 1_001)


def tuned(
    run: Callable[[float, int], Outcome], rates: Sequence[float], seeds: Sequence[int]
) -> tuple[float, list[dict[str, Any]]]:
    """Return the rate of highest mean accuracy, the lower of equals, and all rows."""
    return best_rate(
        {rate: [run(rate, seed).accuracy for seed in seeds] for rate in rates}
    )


def best_rate(
    accuracies: Mapping[float, Sequence[float]],
) -> tuple[float, list[dict[str, Any]]]:
    """Choose a learning rate.

    Args:
      accuracies: accuracies of the runs with each rate.

    Returns:
      The rate with the highest mean accuracy, the lower of equals, and a row for each.
    """
    rows = [
        {"rate": rate, "accuracy": float(np.mean(found))}
        for rate, found in accuracies.items()
    ]
    best = max(rows, key=lambda row: (row["accuracy"], -row["rate"]))["rate"]
    return best, [row | {"best": row["rate"] == best} for row in rows]


def summary(
    rate: float,
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    target: float | None,
) -> dict[str, Any]:
    """Return a row for one arm, compared with the uncorrected one.

    Args:
      rate: its learning rate.
      outcomes: its runs, by seed.
      others: the runs of the uncorrected arm, by seed.
      target: the accuracy until which epochs are counted.

    Returns:
      Means, differences, and under ``epochs_ratio`` the geometric mean of the ratios of
      epochs over the seeds for which both reach the target.
    """
    accuracies = [outcome.accuracy for outcome in outcomes]
    pairs = []
    if target is not None:
        epochs = [
            [outcome.epochs_to(target) for outcome in runs]
            for runs in (outcomes, others)
        ]
        pairs = [(a, b) for a, b in zip(*epochs, strict=True) if a and b]
    ratio = float(np.exp(np.mean([np.log(a / b) for a, b in pairs]))) if pairs else None

    def compared(what: str) -> dict[str, float]:
        runs = (
            [getattr(outcome, what) for outcome in arm] for arm in (outcomes, others)
        )
        return difference(*runs)

    early = compared("early_accuracy")
    return {
        "rate": rate,
        "accuracy": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)),
        **compared("accuracy"),
        "early_accuracy": float(
            np.mean([outcome.early_accuracy for outcome in outcomes])
        ),
        "early_mean": early["mean"],
        "early_p": early["p"],
        "early_loss": float(np.mean([outcome.early_loss for outcome in outcomes])),
        "target": target,
        "both_reach_it": len(pairs),
        "epochs_ratio": ratio,
        "fan_in_spread": float(
            np.mean([outcome.fan_in_spread for outcome in outcomes])
        ),
        "dead": float(np.mean([outcome.dead for outcome in outcomes])),
    }


def summaries(
    rates: Mapping[str, float],
    outcomes: Mapping[str, Sequence[Outcome]],
    target: float | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each arm; the first one is the uncorrected one."""
    uncorrected = next(iter(outcomes.values()))
    return [
        {"arm": arm, **summary(rates[arm], runs, uncorrected, target)}
        for arm, runs in outcomes.items()
    ]


def gains(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of corrections that gain, at another rate than the first arm's.

    A correction gains if the interval of its gain is above 0. With another rate, the
    choice of the rate may be what gained.
    """
    first, *others = rows
    return [r for r in others if r["low"] > 0.0 and r["rate"] != first["rate"]]


def compare(
    report: harness.Report,
    network: Network,
    condition: Condition,
    rates: dict[str, dict[str, float]],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Train all arms of a condition, add all trials, and return a row for each arm.

    ``rates`` holds the chosen learning rates by condition and arm; this condition's are
    added.
    """
    tuning_seeds = TUNING_SEEDS[:1] if report.options.quick else TUNING_SEEDS
    data, tried, outcomes = network.data, [], {}
    rates[condition.name] = {}
    for arm in condition.arms:
        trainer = Trainer(network, condition, arm)
        if condition.like is not None:
            rate = rates[condition.like][arm]
        else:
            rate, tried_rates = tuned(
                lambda rate, seed, trainer=trainer: trainer.run(
                    rate, seed, data.validation
                ),
                *(condition.rates or network.rates, tuning_seeds),
            )
            tried += [{"arm": arm, **row} for row in tried_rates]
        rates[condition.name][arm] = rate
        outcomes[arm] = [trainer.run(rate, seed, data.test) for seed in seeds]
        mean = np.mean([outcome.accuracy for outcome in outcomes[arm]])
        print(f"  {condition.name}, {arm}: {mean:.4f}", flush=True)
    target = network.targets.get(condition.sparsity)
    return add(report, condition, tried, rates[condition.name], outcomes, target)


def add(
    report: harness.Report,
    condition: Condition,
    tried: Sequence[Mapping[str, Any]],
    rates: Mapping[str, float],
    outcomes: Mapping[str, Sequence[Outcome]],
    target: float | None = None,
) -> list[dict[str, Any]]:
    """Add a condition to the record, and return a row for each arm.

    Args:
      report: of the study.
      condition: how all arms were trained.
      tried: rows of the learning rates that were tried.
      rates: the chosen learning rate of each arm.
      outcomes: the runs of each arm, by seed, those of the uncorrected arm first.
      target: the accuracy until which epochs are counted.
    """
    rows = summaries(rates, outcomes, target)
    if tried:
        harness.show(f"{condition.name}: learning rates tried", tried)
    seeds = len(next(iter(outcomes.values())))
    harness.show(f"{condition.name}: {seeds} seeds", rows)
    record = {"condition": condition._asdict(), "tried": tried, "arms": rows}
    # Last in the record: the curves of every seed.
    curves = [[outcome.accuracies for outcome in runs] for runs in outcomes.values()]
    report.record.setdefault("conditions", []).append(record | {"accuracies": curves})
    return rows


def at_same_rate(
    condition: str,
    arm: str,
    rate: float,
    corrected: Sequence[float],
    without: Sequence[float],
) -> dict[str, Any]:
    """Return a row for a correction and uncorrected runs with its learning rate.

    Args:
      condition: the condition's name.
      arm: the correction.
      rate: the learning rate of both.
      corrected: accuracies of the correction, by seed.
      without: those of the uncorrected runs, in the same order.
    """
    return {
        "condition": condition,
        "arm": arm,
        "rate": rate,
        "accuracy": float(np.mean(without)),
        "sd": float(np.std(without, ddof=1)),
        **difference(corrected, without),
    }


def add_at_same_rate(report: harness.Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the rows of ``at_same_rate`` to the record."""
    title = "Corrections that gain, against none with the same learning rate"
    report.listing(title, rows, kind="same_rate")


def judge(report: harness.Report, rows: Mapping[str, Sequence[Mapping[str, Any]]]):
    """Add the claims; each is met if its interval is above 0."""
    tests = [(name, row) for name, arm_rows in rows.items() for row in arm_rows[1:]]
    together = holm([row["p"] for _, row in tests])
    p_values = [
        {"condition": name, "arm": row["arm"], "p": row["p"], "holm": p}
        for (name, row), p in zip(tests, together, strict=True)
    ]
    report.listing("p-values, and of all tests together", p_values, kind="p_values")
    for name, row in tests:
        what = f"{name}: accuracy with {row['arm']} minus without, lower end"
        report.claim(what, row["low"], at_least=0.0)


def run(report: harness.Report, conditions: Sequence[Condition]) -> None:
    """Compare the arms of conditions; a condition's ``like`` must come before it.

    A quick run has only the first condition.
    """
    options = report.options
    available, rates, rows = networks(options.quick), {}, {}
    seeds = range(2 if options.quick else SEEDS)
    for condition in conditions[:1] if options.quick else conditions:
        network = available[condition.network]
        rows[condition.name] = compare(report, network, condition, rates, seeds)
    judge(report, rows)
