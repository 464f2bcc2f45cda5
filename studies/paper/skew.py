"""Figure 1, made quantitative: by what angle the gradients of sparse layers are skewed.

    python -m studies.paper.skew

What the paper shows, as a drawing without numbers: Batch Normalization amplifies the
gradients of neurons with different fan-ins differently, which rotates the gradient of
the layer, and every update of the masks changes by how much.

What is measured here, in runs of RigL on scanned digits (the ResNet of the examples, 95
% sparse), with and without SparseOpt's correction:

- for each layer and step the angle between its gradient and the corrected one;
- the spread of the factors sqrt(1 - s_i) / sqrt(1 - s_avg) over the layer's neurons;
- at each update of the masks, how much the factors move, and the difference of the
  angles by the old and the new masks for the same gradient;
- for comparison, how much the angle differs between steps without an update, which is
  the noise of the batches.

The head is left out, since no normalisation follows it.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

import sparseopt_jax as so
from examples.digits.training import cross_entropy
from reporting import harness
from reporting.figures import COLORS, legend, panels
from sparseopt_jax.layers.neurons import correction_factor, fan_in, resolve_axes
from studies.paper.digits_runs import Runs, config, topology
from studies.paper.report import Report

SPARSITY, SEEDS = 0.95, 3
ARMS = {"RigL": False, "RigL + SparseOpt": True}
TURNED = 5.0  # degrees; a smaller angle does not count as a skew
MOVED = 0.01  # a factor that moves by less has not moved


class Course(NamedTuple):
    """The measurements of one run, over its steps.

    Attributes:
      layers: paths of the sparse kernels that a normalisation follows.
      angles: degrees (steps, layers), of the gradient that the step uses.
      factors: factors of the masks before the step, for each layer (steps, neurons).
      changes: the steps at which masks are updated.
      jumps: degrees (changes, layers): the angle by the new masks minus the angle by
        the old ones, for the gradient of that step.
    """

    layers: tuple[str, ...]
    angles: np.ndarray
    factors: list[np.ndarray]
    changes: np.ndarray
    jumps: np.ndarray


def factors_of(masks: Any) -> dict[str, jax.Array]:
    """Return SparseOpt's factor of each neuron, by path of the kernel."""
    found = {}
    for path, mask in traverse_util.flatten_dict(masks, sep="/").items():
        if isinstance(mask, jax.Array):
            axes = resolve_axes(None, path, mask)
            assert axes is not None
            found[path] = correction_factor(fan_in(mask, axes), axes).ravel()
    return found


def angles_of(params: Any, opt_state: Any, grads: Any) -> dict[str, jax.Array]:
    """Return, by path, the angle by which the correction rotates a layer's gradient."""
    words = "skew_angle/"
    numbers = so.metrics(params, opt_state, grads=grads)
    return {
        name.removeprefix(words): angle
        for name, angle in numbers.items()
        if name.startswith(words)
    }


@jax.jit
def observed_step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Take a training step, and return the measurements of the figure."""

    def loss(params):
        logits, variables = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), variables["batch_stats"]

    grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
    new = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    return new, {
        "before": angles_of(state.params, state.opt_state, grads),
        "after": angles_of(state.params, new.opt_state, grads),
        "factors": factors_of(so.get_masks(state.opt_state)),
        "changed": new.opt_state.topology_state.updated_at == state.opt_state.count,
    }


def follow(runs: Runs, seed: int) -> Course:
    """Train once and return the measurements."""
    state, seen = runs.start(seed), []
    for batch in runs.batches(seed):
        state, numbers = observed_step(state, *batch)
        seen.append(jax.device_get(numbers))
    layers = tuple(path for path in seen[0]["before"] if not path.startswith("head/"))
    before, after = (
        np.array([[numbers[when][path] for path in layers] for numbers in seen])
        for when in ("before", "after")
    )
    changes = np.flatnonzero([numbers["changed"] for numbers in seen])
    factors = [np.array([n["factors"][path] for n in seen]) for path in layers]
    return Course(layers, before, factors, changes, (after - before)[changes])


def movement(old: np.ndarray, new: np.ndarray) -> float:
    """Return how much factors have moved: |new - old| / |old| as vectors.

    >>> movement(np.array([3.0, 4.0]), np.array([3.0, 5.0]))
    0.2
    """
    return float(np.linalg.norm(new - old) / np.linalg.norm(old))


def movements(course: Course) -> np.ndarray:
    """Return how much each update moves the factors of each layer (changes, layers)."""
    # The masks of an update in the last step are no longer seen.
    followed = course.changes[course.changes + 1 < len(course.angles)]
    return np.array(
        [
            [movement(factors[t], factors[t + 1]) for factors in course.factors]
            for t in followed
        ]
    )


def noise(course: Course) -> np.ndarray:
    """Return how much the angle differs between steps without an update (layers,)."""
    steps = np.abs(np.diff(course.angles, axis=0))
    return np.delete(steps, course.changes[course.changes < len(steps)], 0).mean(axis=0)


def summarize(arm: str, courses: Sequence[Course]) -> list[dict[str, Any]]:
    """Return a row for each layer, means over steps and runs."""

    def mean(values: Sequence[np.ndarray], index: int) -> float:
        return round(float(np.mean([series[index] for series in values])), 4)

    over_steps = [course.angles.mean(axis=0) for course in courses]
    moved = [movements(course).mean(axis=0) for course in courses]
    jumps = [np.abs(course.jumps).mean(axis=0) for course in courses]
    noises = [noise(course) for course in courses]
    rows = []
    for index, path in enumerate(courses[0].layers):
        factors = [course.factors[index] for course in courses]
        spread = np.mean([of_run.std(axis=1).mean() for of_run in factors])
        rows.append(
            {
                "arm": arm,
                "layer": path,
                "neurons": factors[0].shape[1],
                "angle": mean(over_steps, index),
                "factor_sd": round(float(spread), 4),
                "factor_min": round(min(float(x.min()) for x in factors), 4),
                "factor_max": round(max(float(x.max()) for x in factors), 4),
                "factors_moved": mean(moved, index),
                "jump": mean(jumps, index),
                "noise": mean(noises, index),
            }
        )
    return rows


def judge(report: Report, arm: str, courses: Sequence[Course]) -> None:
    """Add the claims about one arm."""
    angle = float(np.mean([course.angles.mean() for course in courses]))
    what = f"{arm}: mean angle over layers and steps, degrees"
    report.published(what, angle, at_least=TURNED)
    moved = np.concatenate([movements(course) for course in courses])
    what = f"{arm}: share of changes and layers at which the factors move"
    report.published(what, float((moved > MOVED).mean()), at_least=0.9)
    jumps = np.concatenate([np.abs(course.jumps) for course in courses])
    what = f"{arm}: mean jump of the angle at a change, degrees"
    report.claim(what, float(jumps.mean()))
    ratio = jumps.mean(axis=0) / np.mean([noise(course) for course in courses], axis=0)
    what = f"{arm}: jump at a change / noise from step to step, median over layers"
    report.claim(what, float(np.median(ratio)), at_least=1.0)
    part = max(1, len(courses[0].angles) // 10)
    first, last = (
        float(np.mean([course.angles[span].mean() for course in courses]))
        for span in (slice(0, part), slice(-part, None))
    )
    what = f"{arm}: mean angle in the last tenth of the steps - in the first, degrees"
    report.claim(what, last - first)


def between_changes(course: Course, index: int) -> tuple[list[float], list[float]]:
    """Return midpoints and a layer's mean angle of the stretches between updates."""
    # The step of an update still has the old masks.
    starts = [0, *(course.changes + 1), len(course.angles)]
    stretches = [
        (first, last) for first, last in itertools.pairwise(starts) if last > first
    ]
    means = [float(course.angles[i:j, index].mean()) for i, j in stretches]
    return [(i + j - 1) / 2 for i, j in stretches], means


def draw(courses: dict[str, Course], rows: Sequence[dict[str, Any]]) -> Any:
    """Draw the angles of one run over its steps, and the layers side by side."""
    figure, places = panels(2, 2, (11, 6.6))
    arms = list(courses)
    course = courses[arms[0]]
    angles, spread, moved, bars = places.flat
    for index, path in enumerate(course.layers):
        color = COLORS[index % len(COLORS)]
        style = "-" if index < len(COLORS) else "--"
        name = path.removesuffix("/kernel")
        line = {"color": color, "ls": style, "lw": 0.9, "label": name}
        angles.plot(*between_changes(course, index), marker=".", **line)
        spread.plot(course.factors[index].std(axis=1), **line)
        moves = movements(course)[:, index]
        moved.plot(course.changes[: len(moves)], moves, marker=".", **line)
    angles.set(title=f"{arms[0]}: angle, mean from change to change", ylabel="degrees")
    spread.set(title="Spread of the factors (sd over neurons)")
    moved.set(title="Movement of the factors at each change", ylabel="|ΔD| / |D|")
    for axes in (angles, spread, moved):
        axes.set_xlabel("step")
    names = [row["layer"] for row in rows if row["arm"] == arms[0]]
    for shift, key, color in ((-0.2, "jump", COLORS[1]), (0.2, "noise", COLORS[6])):
        degrees = [row[key] for row in rows if row["arm"] == arms[0]]
        label = {"jump": "at a change, same gradient", "noise": "from step to step"}
        heights = np.arange(len(degrees)) + shift
        bars.barh(heights, degrees, 0.4, color=color, label=label[key])
    bars.set_yticks(range(len(names)), [n.removesuffix("/kernel") for n in names])
    bars.invert_yaxis()
    bars.set(title="How much the angle moves", xlabel="degrees, mean")
    legend(bars)
    legend(moved)
    return figure


def main(options: harness.Options) -> None:
    """Run the study."""
    report = Report("studies.paper.skew", options)
    # A layer with few weights would have hardly any left.
    of = config(0.5 if options.quick else SPARSITY, options.quick)
    seeds = 1 if options.quick else SEEDS
    rows, first, found = [], {}, {}
    for arm, sparseopt in ARMS.items():
        runs = Runs(of, topology(of), sparseopt=sparseopt, quick=options.quick)
        found[arm] = [follow(runs, seed) for seed in range(seeds)]
        first[arm] = found[arm][0]
        rows += summarize(arm, found[arm])
    report.listing(f"layers at sparsity {of.sparsity:g}, {seeds} runs", rows)
    for arm, courses in found.items():
        judge(report, arm, courses)
    report.picture(draw(first, rows))
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
