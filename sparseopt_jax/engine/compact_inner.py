"""Optimizers whose updates stay the same if they see only the active weights."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.extend import core

from sparseopt_jax.layers.neurons import Axes
from sparseopt_jax.layers.structures import Unstructured
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.active_weights import ActiveWeights
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.tracing import transformation_links
from sparseopt_jax.tracing.jaxpr_analysis import draws, is_elementwise
from sparseopt_jax.tracing.transformation_links import Link

# Both axes exceed the size from which moments are factored by default.
_SHAPE, _ACTIVE, _STEPS = (130, 132), 5000, 3
_TOLERANCE = 1e-3


# Wrappers that are known to fit if the transformations inside of them do.
_WRAPPERS = frozenset(
    {
        *("chain", "named_chain", "masked", "partition", "multi_transform"),
        *("inject_hyperparams", "apply_if_finite", "with_extra_args_support"),
    }
)
# The package's own transformations support active weights only.
_OURS = __name__.partition(".")[0]


class _NeedsParametersError(Exception):
    pass


def check_inner(
    inner: optax.GradientTransformation, subject: str, way_out: str
) -> None:
    """Raise unless active weights get the same updates with and without inactive ones.

    Elementwise transformations pass, and so do norms, because zeros do not contribute.
    All others are tested: a few steps on a kernel most of whose weights are zero must
    give the same as steps on its active weights only. Transformations that cannot be
    tested are rejected.

    Args:
      inner: any transformation.
      subject: what shows it only active weights, for the message.
      way_out: an alternative to another optimizer, for the message.

    Raises:
      ValueError: with the names of the transformations, or links of the chain, that
        fail.
    """
    if _holds_tracers(transformation_links.read(inner)):
        # `inject_hyperparams` rebuilds it in every trace; it was tested with numbers.
        return
    reason = _trouble(inner)
    if reason is None:
        return
    blamed = list(_blamed(transformation_links.read(inner)))
    if not blamed and reason is _DIFFERS:
        # A link fails only in combination with others, so the whole is named.
        blamed = [(transformation_links.read(inner).name, reason)]
    if blamed:
        listed = "; ".join(f"{name} {why}" for name, why in dict.fromkeys(blamed))
        raise ValueError(
            f"{subject} the optimizer only the active weights, but {listed}: use an "
            f"elementwise optimizer, such as adam, lion or sgd, or {way_out}"
        )


_DIFFERS = "would then give them different updates"
_DRAWS = "draws random numbers, which depend on the shape of the leaf"
_NEEDS_ALL = "evaluates the loss, which needs all weights"


def _holds_tracers(link: Link) -> bool:
    held = jax.tree.leaves(list(link.variables.values()))
    return any(isinstance(x, Tracer) for x in held) or any(
        map(_holds_tracers, link.parts)
    )


def _blamed(link: Link) -> Iterator[tuple[str, str]]:
    """Yield the name of each link that does not fit, and the reason."""
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
    # Transformations that accept only matrices are tested on a matrix only.
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
            program = trial.program()
            if draws(program, _ACTIVE):
                return _DRAWS
            alone = is_elementwise(program, set(program.invars))
            return None if alone or trial.agrees() else _DIFFERS
        except _NeedsParametersError:
            return _NEEDS_ALL
        # A user's function may raise anything without the arguments of a real step.
        except Exception as error:
            said = f"{type(error).__name__}: {error}".partition("\n")[0]
            return f"could not be tested on a small kernel ({said})"


class _Trial:
    """A few steps on a kernel and a bias, with and without the inactive weights."""

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
                # With a mean far from 0, which many transformations subtract.
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
        masks = {"kernel": mask, "bias": optax.MaskedNode()}
        values = {
            "masks": masks,
            "trained_masks": masks,
            "fan_ins": {
                "kernel": jnp.sum(self.mask, 0, keepdims=True, dtype=jnp.int32),
                "bias": optax.MaskedNode(),
            },
            "neuron_dims": None,
        }
        args = (grads, state, params)
        run = functools.partial(environment.run, self.inner, self.named, values, *args)
        try:
            return run()
        except TypeError as missing:
            # Line searches need these arguments.
            loss = {"value": jnp.float32(1.0), "grad": grads, "value_fn": _value_fn}
            try:
                return run(**loss)
            except TypeError:
                raise missing from None

    def program(self) -> core.Jaxpr:
        """Return the jaxpr of a step that sees only the active weights."""
        params = self.active(self.trees[0])
        state = self.inner.init(params)
        weights = ActiveWeights(self.index, self.layout)
        step = functools.partial(self.update, mask=weights)
        return jax.make_jaxpr(step)(params, state, params).jaxpr

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
    """Raise, because the loss needs the inactive weights."""
    raise _NeedsParametersError
