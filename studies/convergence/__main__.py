"""Whether, and when, correcting gradients helps: paired comparisons by seed.

    python -m studies.convergence

A sparse perceptron with Batch Normalization learns synthetic images in 100 classes, and
a small ResNet scanned digits, under a number of conditions: one default, and others
that differ from it in one respect that matters according to the sources or our earlier
trials. In each, the gradient is left alone, corrected by fan-in (the paper's rule), by
the variances that Batch Normalization measures, or by the norms of the weights (ours).

What makes the comparison fair and repeatable:

- The criteria were fixed before anything was compared: the accuracy after the last
  epoch and after a ninth of them, and the epochs until a test accuracy is reached.
- Every arm of every condition has the same tuning budget: five learning rates, a factor
  of 2 apart, with two seeds each that no other run uses. They are judged on held-out
  training images, never on the test images.
- Then all arms train with the same seeds. A seed decides the weights, the masks and the
  order of the images, the same for all arms, and differences are taken by seed.
- Reported are the mean difference, its 95 % confidence interval, and the p-value of the
  paired t-test, also corrected by Holm's method for all tests of the same kind: among
  many tests, one in twenty falls below 0.05 without any difference.
"""

from reporting import harness
from studies.convergence.compare import run
from studies.convergence.conditions import CONDITIONS
from studies.convergence.picture import draw_gains


def main(options: harness.Options) -> None:
    """Run the study."""
    report = harness.Report("studies.convergence", options)
    run(report, CONDITIONS)
    report.picture(draw_gains(report.record))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
