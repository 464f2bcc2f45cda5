"""Which optimizers give a weight the same when they see the active ones alone."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.layers.structures import Unstructured
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import ActiveWeights
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.tracing import transformation_links
from sparseopt_jax.tracing.jaxpr_analysis import is_elementwise
from sparseopt_jax.tracing.transformation_links import Link

# Larger than the axes from which moments are factored by default.
_SHAPE, _ACTIVE, _STEPS = (130, 132), 5000, 3
_TOLERANCE = 1e-3


# What these do between the transformations inside of them is known to be no trouble.
_WRAPPERS = frozenset(
    {
        *("chain", "named_chain", "masked", "partition", "multi_transform"),
        *("inject_hyperparams", "apply_if_finite", "with_extra_args_support"),
    }
)
# The package's own are made for active weights alone.
_OURS = __name__.partition(".")[0]


class _NeedsParametersError(Exception):
    pass


def check_inner(
    inner: optax.GradientTransformation, subject: str, way_out: str
) -> None:
    """Raise unless weights get the same updates with and without inactive ones.

    What works element by element does, and so do norms, to which zeros add nothing. The
    others are told by trying: a few steps on a kernel most of whose weights are zero,
    and on the rest of it alone. What cannot be tried is refused.

    Args:
      inner: any transformation.
      subject: who shows it active weights alone, for the message.
      way_out: what to do instead of taking another optimizer, for the message.

    Raises:
      ValueError: with the name of the transformation, or of the link of the chain, that
        is to blame, and of no other.
    """
    if _holds_tracers(transformation_links.read(inner)):
        # `inject_hyperparams` makes it anew at every trace: it was tried with numbers.
        return
    reason = _trouble(inner)
    if reason is None:
        return
    blamed = list(_blamed(transformation_links.read(inner)))
    if not blamed and reason is _DIFFERS:
        # It works only among others, so that it is not told from them.
        blamed = [(transformation_links.read(inner).name, reason)]
    if blamed:
        listed = "; ".join(f"{name} {why}" for name, why in dict.fromkeys(blamed))
        raise ValueError(
            f"{subject} the optimizer the active weights alone, and {listed}: use an "
            f"elementwise optimizer, such as adam, lion or sgd, or {way_out}"
        )


_DIFFERS = "would give a weight another update there"
_NEEDS_ALL = "evaluates the loss, which needs all of them"


def _holds_tracers(link: Link) -> bool:
    held = jax.tree.leaves(list(link.variables.values()))
    return any(isinstance(x, Tracer) for x in held) or any(
        map(_holds_tracers, link.parts)
    )


def _blamed(link: Link) -> Iterator[tuple[str, str]]:
    """Names of the links that do not fit, and why."""
    is_ours = str(getattr(link.update, "__module__", "")).partition(".")[0] == _OURS
    if is_ours or (link.parts and link.name in _WRAPPERS):
        for part in link.parts:
            yield from _blamed(part)
        return
    reason = _trouble(optax.GradientTransformationExtraArgs(link.init, link.update))
    if reason is None:
        return
    inside = [found for part in link.parts for found in _blamed(part)]
    yield from inside or [(link.name, reason)]


def _trouble(inner: optax.GradientTransformation) -> str | None:
    """Return why a transformation does not fit; None if it does."""
    # One for matrices only is tried on a matrix only.
    reasons = [_trouble_with(inner, ("kernel", "bias"))]
    if reasons[0] not in (None, _DIFFERS, _NEEDS_ALL):
        reasons.append(_trouble_with(inner, ("kernel",)))
    return reasons[-1]


def _trouble_with(
    inner: optax.GradientTransformation, leaves: tuple[str, ...]
) -> str | None:
    with jax.ensure_compile_time_eval():
        try:
            trial = _Trial(optax.with_extra_args_support(inner), leaves)
            fits = trial.is_elementwise() or trial.agrees()
            return None if fits else _DIFFERS
        except _NeedsParametersError:
            return _NEEDS_ALL
        # Whatever a user's function raises without what a real step would give it.
        except Exception as error:
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            return f"could not be tried on a small kernel ({said})"


class _Trial:
    """A few steps on one kernel and one bias, whole and without inactive weights."""

    def __init__(
        self, inner: optax.GradientTransformationExtraArgs, leaves: tuple[str, ...]
    ):
        self.inner: Any = inner
        self.named = environment.named_by(inner)
        units = Unstructured().units("kernel", _SHAPE, Axes((), (0,), (1,)))
        self.layout = Layout(units, _ACTIVE)
        rng = np.random.default_rng(0)
        places = rng.choice(units.per_cell, _ACTIVE, replace=False)
        self.index = jnp.asarray(np.sort(places), jnp.int32)
        self.mask = self.layout.mask(self.index)
        self.trees = [
            {
                # Far from 0 in the mean, which many a transformation takes off.
                "kernel": jnp.where(self.mask, rng.normal(1.0, size=_SHAPE), 0),
                "bias": jnp.asarray(rng.normal(1.0, size=5)),
            }
            for _ in range(_STEPS + 1)
        ]
        self.trees = [
            {name: x.astype(jnp.float32) for name, x in tree.items() if name in leaves}
            for tree in self.trees
        ]

    def active(self, tree: Any) -> Any:
        return tree | {"kernel": self.layout.take(tree["kernel"], self.index)}

    def update(self, grads: Any, state: Any, params: Any, mask: Any) -> Any:
        told = {
            "masks": {"kernel": mask, "bias": optax.MaskedNode()},
            "fan_ins": {
                "kernel": jnp.sum(self.mask, 0, keepdims=True),
                "bias": optax.MaskedNode(),
            },
            "neuron_dims": None,
        }
        args = (grads, state, params)
        run = functools.partial(environment.run, self.inner, self.named, told, *args)
        try:
            return run()
        except TypeError as missing:
            # What a line search is called with.
            loss = {"value": jnp.float32(1.0), "grad": grads, "value_fn": _value_fn}
            try:
                return run(**loss)
            except TypeError:
                raise missing from None

    def is_elementwise(self) -> bool:
        params = self.active(self.trees[0])
        state = self.inner.init(params)
        weights = ActiveWeights(self.index, self.layout)
        step = functools.partial(self.update, mask=weights)
        program = jax.make_jaxpr(step)(params, state, params).jaxpr
        return is_elementwise(program, set(program.invars))

    def agrees(self) -> bool:
        whole = jax.jit(self.steps)(self.trees)
        alone = jax.jit(self.steps)([self.active(tree) for tree in self.trees])
        return all(
            np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(b).max())
            for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True)
        )

    def steps(self, trees: list[Any]) -> list[Any]:
        """Return the updates of the active weights at every step."""
        params, *gradients = trees
        is_whole = params["kernel"].shape == _SHAPE
        mask = self.mask if is_whole else ActiveWeights(self.index, self.layout)
        state = self.inner.init(params)
        found = []
        for grads in gradients:
            updates, state = self.update(grads, state, params, mask)
            params: Any = optax.apply_updates(params, updates)
            if is_whole:
                params |= {"kernel": jnp.where(self.mask, params["kernel"], 0)}
                updates = self.active(updates)
            found.append(updates)
        return found


def _value_fn(params: Any) -> Any:
    """A loss cannot be evaluated without the inactive weights."""
    raise _NeedsParametersError
