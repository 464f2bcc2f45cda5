"""Methods that lower the density while they train: GMP, one-shot, AC/DC, GraNet."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from sparseopt_jax.arguments.checks import integer, integers
from sparseopt_jax.arguments.method_options import check_options
from sparseopt_jax.layers.distributions import check_sparsity
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.methods.static import rigl, static
from sparseopt_jax.topologies.rewiring import BY_WEIGHTS, Rewiring
from sparseopt_jax.topologies.schedules import (
    Alternating,
    Cubic,
    DensitySchedule,
    Followed,
    Schedule,
    StepList,
    UpdateSchedule,
)


def gradual_magnitude(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    initial_sparsity: float = 0.0,
    schedule: Schedule | None = None,
    scope: str = "layer",
    **options: Any,
) -> Rewiring:
    """Gradual magnitude pruning: fewer weights at each update, the largest ones.

    The masks are updated every ``every`` steps from ``start`` on, before ``stop``. The
    sparsity goes from ``initial_sparsity`` at ``start`` to ``sparsity`` at the last
    update T, by default along the published cubic
    s_f + (s_i - s_f) (1 - (t - start) / (T - start))^3. What is pruned is not grown
    again unless the sparsity falls by its schedule: masks that are sparser already, as
    ``masks`` or a phase before gives them, wait for it.

    Args:
      sparsity: fraction of zeros in the end, as in ``static``; left out where a
        schedule or a structure gives it.
      every: steps between updates, at least 1.
      stop: first step without an update. The one before it reaches ``sparsity``.
      start: step of the first update.
      initial_sparsity: fraction of zeros until ``start``. The largest weights of those
        that ``init`` is given are kept; random ones where it is given shapes alone.
      schedule: the sparsity as a function of the step, any schedule of optax; it may
        rise and fall. What it gives at ``start`` and ``stop`` takes the place of
        ``initial_sparsity`` and ``sparsity``.
      scope: ``"layer"`` prunes each layer by itself to the distribution's numbers,
        ``"global"`` all weights of the network by one threshold.
      **options: ``distribution``, ``first``, ``structure``, ``where``, ``include``,
        ``masks``, ``dims``,
        ``min_fan_in`` and ``track_explored``, as in ``static``. ``masks`` say which
        weights there are to begin with, ``so.masks_of(params)`` for those of a sparse
        checkpoint; ``sparsity`` is given with them.

    Returns:
      The topology. An update follows the gradient step.

    Raises:
      ValueError: as ``static``, and for steps as ``set_`` has them.
      TypeError: as ``static``.

    Note:
      The published formula ends at an update, t_0 + n delta t: here the last one before
      ``stop``. With a ``schedule`` that one takes the value at ``stop``.

    References:
      Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878).

    Examples:
      >>> import optax
      >>> import sparseopt_jax as so
      >>> topology = so.gradual_magnitude(0.9, every=100, start=500, stop=2501)
      >>> topology.schedule.steps[-1]
      2500
      >>> linear = optax.linear_schedule(0.0, 0.8, 1000)
      >>> so.gradual_magnitude(schedule=linear, every=50, stop=1001).sparsity
      0.8
    """
    check_options("gradual_magnitude", static, options)
    times = UpdateSchedule(every, start, stop, 0.0, "constant")
    start, last = times.steps[0], times.steps[-1]
    if schedule is None:
        progress = Cubic(start, last)
    else:
        if sparsity is not None:
            raise ValueError("give sparsity or schedule, not both")
        initial_sparsity, sparsity = _ends(schedule, start, times.stop)
        progress = Followed(schedule, initial_sparsity, sparsity, start, last)
    return dataclasses.replace(
        static(sparsity, **options),
        name="gradual_magnitude",
        schedule=times,
        density=DensitySchedule(initial_sparsity, progress),
        scope=scope,
        starts_from=BY_WEIGHTS,
    )


def _ends(schedule: Schedule, start: int, stop: int) -> tuple[float, float]:
    """First and last sparsity of a schedule."""
    first, last = (
        # What float32 makes of 0.9 is meant to be 0.9.
        round(check_sparsity(schedule(step), f"schedule({step})"), 6)
        for step in (start, stop)
    )
    if first == last:
        raise ValueError(
            f"schedule must have other values at start and stop, got {first} at both"
        )
    return first, last


def one_shot(
    sparsity: float | None = None,
    *,
    at: int,
    score: str | scores.Score = "magnitude",
    scope: str = "layer",
    **options: Any,
) -> Rewiring:
    """Prunes a network once, at one step, and keeps it so.

    Args:
      sparsity: as in ``static``.
      at: the step after which the network is sparse.
      score: what is kept: ``"magnitude"``, ``"random"``, ``"saliency"`` (weight times
        gradient), or a function of (key, param, grad).
      scope: as in ``gradual_magnitude``.
      **options: as in ``gradual_magnitude``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``, and for an unknown score.
      TypeError: as ``static``.

    Examples:
      >>> import sparseopt_jax as so
      >>> so.one_shot(0.9, at=1000, score="saliency").due(1000)
      True
    """
    check_options("one_shot", static, options)
    known = {
        "magnitude": scores.magnitude,
        "random": scores.random,
        "saliency": scores.saliency,
    }
    if isinstance(score, str) and score not in known:
        raise ValueError(
            f"score must be one of {', '.join(known)}, or a function, got {score!r}"
        )
    at = integer("at", at, 0)
    return dataclasses.replace(
        static(sparsity, **options),
        name="one_shot",
        schedule=StepList((at,)),
        density=DensitySchedule(0.0, Alternating((at,), "one_shot.<locals>.<lambda>")),
        drop=known[score] if isinstance(score, str) else score,
        scope=scope,
    )


def ac_dc(
    sparsity: float | None = None,
    *,
    compress: Sequence[int],
    decompress: Sequence[int],
    **options: Any,
) -> Rewiring:
    """AC/DC: dense and sparse phases in turn.

    After each step of ``compress`` the largest weights of every layer stay; after each
    step of ``decompress`` all are active, those that come back with a value of zero
    and a fresh optimizer state; with ``masks``, those that they leave out as well.

    Args:
      sparsity: fraction of zeros in the sparse phases, as in ``static``.
      compress: steps after which the network is sparse, ascending.
      decompress: steps after which it is dense again, one between each two of
        ``compress``, so that it is sparse in the end.
      **options: as in ``gradual_magnitude``.

    Returns:
      The topology.

    Raises:
      ValueError: as ``static``, and for steps that do not alternate.
      TypeError: as ``static``.

    Note:
      The authors compare the weights of all layers together; here each layer keeps what
      its distribution gives it. ImageNet at 90 %, in epochs: compress at 10, 20, ...,
      70, 85; decompress at 15, 25, ..., 65, 75.

    References:
      Peste et al., AC/DC: alternating compressed/decompressed training of deep neural
      networks, 2021 (arXiv 2106.12379).

    Examples:
      >>> import sparseopt_jax as so
      >>> topology = so.ac_dc(0.9, compress=[100, 300], decompress=[200])
      >>> [topology.due(step) for step in (100, 150, 200)]
      [True, False, True]
    """
    check_options("ac_dc", static, options)
    compress = integers("compress", compress)
    decompress = integers("decompress", decompress)
    steps = sorted((*compress, *decompress))
    alternating = [
        own
        for pair in itertools.zip_longest(compress, decompress)
        for own in pair
        if own is not None
    ]
    if len(compress) != len(decompress) + 1 or steps != alternating:
        raise ValueError(
            "compress and decompress must alternate, compress first and last, got "
            f"{list(compress)} and {list(decompress)}"
        )
    times = StepList(tuple(steps))

    return dataclasses.replace(
        static(sparsity, **options),
        name="ac_dc",
        schedule=times,
        # Dense before the first, sparse after the first, and so on.
        density=DensitySchedule(
            0.0, Alternating(times.steps, "ac_dc.<locals>.progress")
        ),
    )


def granet(
    sparsity: float | None = None,
    *,
    every: int,
    stop: int,
    start: int = 0,
    initial_sparsity: float = 0.5,
    drop_fraction: float = 0.5,
    **options: Any,
) -> Rewiring:
    """GraNet: gradual pruning, and at each update RigL besides.

    The network is pruned to a sparsity that follows the cubic, by one threshold on the
    magnitude of all weights; then every layer drops a fraction of its smallest weights
    and grows as many where the gradient is largest.

    Args:
      sparsity: fraction of zeros in the end, as in ``static``.
      every: steps between updates.
      stop: first step without an update. The one before it reaches ``sparsity``.
      start: step of the first update.
      initial_sparsity: fraction of zeros at first, in random masks; 0 starts dense.
        To begin with given weights instead, pass ``masks``, say
        ``so.masks_of(params)``.
      drop_fraction: fraction of the active weights replaced at first, cosine until
        ``stop``.
      **options: as in ``rigl``.

    Returns:
      The topology. An update replaces the gradient step, as in RigL.

    Raises:
      ValueError: as ``rigl``.
      TypeError: as ``rigl``.

    Note:
      The defaults of the initial sparsity and of the fraction are the authors', and so
      are random first masks: above 0 their run is sparse from scratch. The cubic ends
      at the last update before ``stop``, as in ``gradual_magnitude``. The
      budget over all layers is the distribution's total; its share between layers is
      what the threshold makes of it.

    References:
      Liu et al., Sparse training via boosting pruning plasticity with
      neuroregeneration, 2021 (arXiv 2106.10404).

    Examples:
      >>> import sparseopt_jax as so
      >>> so.granet(0.9, every=100, stop=1000).scope
      'global'
    """
    check_options(
        "granet",
        rigl,
        options,
        given=("every", "start", "stop", "drop_fraction"),
    )
    topology = rigl(
        sparsity,
        every=every,
        start=start,
        stop=stop,
        drop_fraction=drop_fraction,
        **options,
    )
    steps = topology.schedule.steps  # pyright: ignore
    return dataclasses.replace(
        topology,
        name="granet",
        density=DensitySchedule(initial_sparsity, Cubic(steps[0], steps[-1])),
        scope="global",
    )
