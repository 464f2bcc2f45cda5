"""Whether corrections that gain still do so at the same learning rate.

    python -m studies.convergence.same_rate

Two seeds and the held-out images choose the learning rate of each arm, so a gain may be
one of that choice. Here, wherever the interval of a gain in the stored record of
``studies.convergence`` is above 0 and the rates are different, the uncorrected network
is trained again with the correction's rate and the same seeds. Losses are not looked
at again.
"""

from reporting import harness
from reporting.statistics import accuracies
from reporting.stored import load
from studies.convergence.compare import add_at_same_rate, at_same_rate, gains
from studies.convergence.conditions import Condition
from studies.convergence.runs import Trainer, networks

SEEDS_IF_QUICK = 2


def main(options: harness.Options) -> None:
    """Run the study."""
    report = harness.Report("studies.convergence.same_rate", options)
    available, rows = networks(options.quick), []
    for entry in load("studies.convergence")["conditions"]:
        condition = Condition(**entry["condition"])
        if condition.network not in available:
            continue
        network = available[condition.network]
        for gained in gains(entry["arms"]):
            arm, rate = gained["arm"], gained["rate"]
            corrected = accuracies(entry, arm).tolist()
            if options.quick:
                corrected = corrected[:SEEDS_IF_QUICK]
            trainer = Trainer(network, condition, entry["arms"][0]["arm"])
            without = [
                trainer.run(rate, seed, network.data.test).accuracy
                for seed in range(len(corrected))
            ]
            rows.append(at_same_rate(condition.name, arm, rate, corrected, without))
    add_at_same_rate(report, rows)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
