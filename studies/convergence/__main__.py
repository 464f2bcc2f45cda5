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

from reporting import harness
from studies.convergence.compare import run
from studies.convergence.conditions import CONDITIONS
from studies.convergence.picture import draw_gains


def main(options: harness.Options) -> None:
    """Runs the study."""
    report = harness.Report("studies.convergence", options)
    run(report, CONDITIONS)
    report.picture(draw_gains(report.record))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
