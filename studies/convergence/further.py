"""Corrections under the conditions that ``studies.convergence`` left open.

    python -m studies.convergence.further

These conditions were added after its results were seen. Some of its arms did best at
the lowest learning rate that was tried: here lower ones are tried as well. Its longer
runs used the learning rates of the short one: here they are tuned separately, with
equally many rates for every arm. And some questions had no condition: fan-ins by a
power law, the classifier left out of the correction, growth by corrected gradients.

Everything else is the same: the networks, the seeds, the tuning, and the statistics.
"""

from reporting import harness
from studies.convergence.compare import run
from studies.convergence.conditions import FURTHER


def main(options: harness.Options) -> None:
    """Run the study."""
    report = harness.Report("studies.convergence.further", options)
    run(report, FURTHER)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
