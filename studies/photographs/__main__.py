"""Compare corrections of gradients on photographs, also in a convolutional network.

    python -m studies.photographs
    python -m studies.photographs --data-dir ~/fashion-mnist --minutes 60

A ResNet-8 and a perceptron learn Fashion-MNIST, sparse. The gradient is left alone,
corrected by fan-in (the paper's rule), or by the variances that Batch Normalization
measures (ours). A rule of ours is compared as well: a least fan-in, so that no neuron
loses all its inputs.

Tuning and statistics are those of ``studies.convergence``: every arm of every condition
is given the same learning rates, a factor of 2 apart, and a further one while its best
is the highest or the lowest; with two seeds that no result uses, judged by images held
out of training. Then all arms train with the same seeds, and differences are taken by
seed. Runs three times as long take the rates of the short ones. Where a correction
gains, the uncorrected runs are repeated with its learning rate: a gain that is gone
then was one of the choice of rates. Finished runs are kept in ``--folder``, and the
next call trains what is missing.
"""

from collections.abc import Sequence
from typing import Any

from reporting import harness
from reporting.statistics import difference
from studies.convergence.compare import add, add_at_same_rate, at_same_rate, judge
from studies.convergence.conditions import Condition
from studies.convergence.picture import draw_gains
from studies.convergence.runs import Network
from studies.photographs.conditions import CONDITIONS
from studies.photographs.networks import networks
from studies.photographs.training import Options, Runs, train_missing


def compare(
    report: harness.Report, condition: Condition, network: Network, runs: Runs
) -> list[dict[str, Any]]:
    """Add a finished condition to the record, and return a row for each arm."""
    tried, rates, outcomes = [], {}, {}
    for arm in condition.arms:
        rates[arm], rows = runs.tried(condition, arm, network)
        if condition.like is None:
            tried += [{"arm": arm, **row} for row in rows]
        outcomes[arm] = runs.compared(condition, arm, network)
    return add(report, condition, tried, rates, outcomes)


def compare_least_fan_in(
    report: harness.Report,
    conditions: Sequence[Condition],
    available: dict[str, Network],
    runs: Runs,
) -> None:
    """Add what a least fan-in gains over none, with every correction and without."""
    by_name = {condition.name: condition for condition in conditions}
    rows = []
    for ruled in conditions:
        plain = by_name.get(ruled.name.partition(", least")[0])
        if not ruled.min_fan_in or plain is None:
            continue
        network = available[ruled.network]
        for arm in ruled.arms:
            with_rule = runs.compared(ruled, arm, network)
            for other in dict.fromkeys((arm, "none")):
                without = runs.compared(plain, other, network)
                pairs = ([run.accuracy for run in one] for one in (with_rule, without))
                row = {"condition": plain.name, "arm": arm, "against": other}
                rows.append(row | difference(*pairs))
    if rows:
        report.listing("A least fan-in against none", rows, kind="least_fan_in")


def compare_at_same_rate(
    report: harness.Report,
    conditions: Sequence[Condition],
    available: dict[str, Network],
    runs: Runs,
) -> list[str]:
    """Add what corrections that gain do so over runs with the same learning rate.

    Returns:
      The comparisons whose runs are missing.
    """
    rows, missing = [], []
    for condition in conditions:
        network, first = available[condition.network], condition.arms[0]
        for arm, rate in runs.gains(condition, network):
            without = runs.compared(condition, first, network, rate)
            if not without:
                missing.append(f"{condition.name}, {first} with the rate of {arm}")
                continue
            pairs = (
                [run.accuracy for run in one]
                for one in (runs.compared(condition, arm, network), without)
            )
            rows.append(at_same_rate(condition.name, arm, rate, *pairs))
    add_at_same_rate(report, rows)
    return missing


def main(options: Options) -> None:
    """Run the study."""
    report = harness.Report("studies.photographs", options)
    conditions = CONDITIONS[1:3] if options.quick else CONDITIONS
    available = networks(options.data_dir, options.quick)
    runs = train_missing(options, conditions)
    finished = [c for c in conditions if runs.is_finished(c, available[c.network])]
    missing = [c.name for c in conditions if c not in finished]
    if not finished:
        raise SystemExit("No condition is finished: the next call resumes.")
    rows = {c.name: compare(report, c, available[c.network], runs) for c in finished}
    compare_least_fan_in(report, finished, available, runs)
    missing += compare_at_same_rate(report, finished, available, runs)
    report.record["missing"] = missing
    if missing:
        print(f"\nNot finished, and left out: {'; '.join(missing)}")
    judge(report, rows)
    report.picture(draw_gains(report.record))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
