"""The normalisation that follows each kernel, read off the traced model.

In evaluation mode a batch normalisation subtracts a running mean, which is a leaf of
the model's variables. The model is only traced; nothing is computed.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sparseopt_jax.corrections.norm_flow import (
    NO_NORM,
    Fixed,
    NormFlow,
    Value,
    size_of,
)
from sparseopt_jax.tracing.jaxprs import open_jaxpr
from sparseopt_jax.tracing.model_program import has_collections
from sparseopt_jax.tracing.running_statistics import RunningStatistics, find_statistics
from sparseopt_jax.trees import paths


class NormLinks(dict[str, str]):
    """Kernel path -> path of the normalisation that follows it.

    Attributes:
      undecided: kernel path -> why it has no link.
    """

    def __init__(self, links: Mapping[str, str], undecided: Mapping[str, str]):
        super().__init__(links)
        self.undecided = dict(undecided)

    def __repr__(self) -> str:
        return f"NormLinks({super().__repr__()}, undecided={self.undecided!r})"


def infer_norm_links(
    apply_fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> NormLinks:
    """Find the batch normalisation that follows each kernel by tracing the model.

    A kernel is a leaf with two or more axes that is an operand of a matrix product or
    a convolution. It is linked to a normalisation if its output goes there and nowhere
    else, and if on the way it only meets a bias, a scalar factor, a change of layout
    or of dtype. All others are reported by name in ``undecided``: an activation,
    pooling or a skip connection comes before the norm, no norm comes at all, the norm
    is over another axis than the features, the kernel or the norm is used several
    times.

    Args:
      apply_fn: ``apply_fn(variables, *args, **kwargs)`` evaluates the model with its
        running statistics, as ``model.apply`` with ``train=False`` does in linen and
        ``lambda state, x: nnx.merge(graphdef, state)(x)`` in nnx. For Haiku and
        Equinox, pass the parameters and the state in one dictionary, as in
        ``lambda v, x: model.apply(v["params"], v["state"], None, x)``.
      variables: all variables, as arrays or ``jax.ShapeDtypeStruct``. A running mean
        is a leaf ``.../mean`` that has a sibling ``.../var``, as in Flax, Haiku's
        ``.../mean_ema/average`` beside ``.../var_ema/average``, or the first of a pair
        of vectors in an Equinox ``State``. If there is a collection ``"params"`` at the
        top, reported paths omit the collection's name.
      *args: the model's inputs, as arrays or ``jax.ShapeDtypeStruct``. Values that are
        not arrays are passed unchanged.
      **kwargs: treated like ``args``.

    Returns:
      The links and, as their attribute ``undecided``, the reasons for the kernels that
      have none. Both are in the order of ``variables``.

    Raises:
      ValueError: if ``variables`` hold no arrays or no running mean, or if
        ``apply_fn`` never subtracts one.

    Examples:
      >>> import flax.linen as nn
      >>> import jax, jax.numpy as jnp
      >>> from sparseopt_jax.corrections.norm_links import infer_norm_links
      >>> norm = nn.BatchNorm(use_running_average=True)
      >>> model = nn.Sequential([nn.Dense(8), norm, nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((4, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> links = infer_norm_links(model.apply, variables, x)
      >>> dict(links)
      {'layers_0/kernel': 'layers_1'}
      >>> links.undecided
      {'layers_3/kernel': 'no normalisation follows'}
    """
    leaves = list(paths.leaves_by_path(variables))
    if not leaves:
        raise ValueError(
            f"variables must hold the model's arrays, got {variables!r}: pass what "
            "model.init or nnx.state(model) returns"
        )
    found = find_statistics(variables)
    if not found:
        raise ValueError(
            "no running mean found: pass the variables of a model with BatchNorm, "
            "its statistics (batch_stats, Haiku's or Equinox's state) included, and "
            "evaluate with train=False; the paths are " + ", ".join(leaves)
        )
    jaxpr = _trace(apply_fn, variables, args, kwargs)
    roles = _roles(variables, leaves, jaxpr, found)
    flow = NormFlow(roles.norms)
    others: list[Value] = [{} for _ in jaxpr.invars[len(leaves) :]]
    for value in flow.run(jaxpr, [*roles.inputs, *others]):
        flow.end(value, f"the output; {NO_NORM}", NO_NORM)
    if not any(mean in flow.uses for mean in roles.norms):
        raise ValueError(
            "running statistics are never subtracted: call the model in evaluation "
            "mode (train=False / model.eval()) and pass its inputs to infer_norm_links "
            "as arguments"
        )
    # Omit leaves with two or more axes that are used, but not as kernels (an embedding
    # that is looked up, the biases of stacked layers).
    reasons = {
        name: flow.undecided(name)
        for name in roles.candidates
        if name in flow.features or name not in flow.uses
    }
    return NormLinks(
        {name: flow.norm(name) for name, reason in reasons.items() if reason is None},
        {name: reason for name, reason in reasons.items() if reason is not None},
    )


class _Roles(NamedTuple):
    """The roles of the leaves of a model's variables.

    Attributes:
      candidates: the names of leaves that may be kernels.
      norms: running mean -> path of its normalisation.
      inputs: the known properties of each leaf before the model runs.
    """

    candidates: list[str]
    norms: dict[str, str]
    inputs: list[Fixed]


def _roles(
    variables: Any,
    leaves: list[str],
    jaxpr: core.Jaxpr,
    found: list[RunningStatistics],
) -> _Roles:
    norm_of = {statistics.mean: statistics.norm for statistics in found}
    paths_of_statistics = {*norm_of, *(statistics.variance for statistics in found)}
    in_params = has_collections(variables)
    roles = _Roles([], {}, [])
    for path, var in zip(leaves, jaxpr.invars, strict=False):
        aval: Any = var.aval
        name = path.partition("/")[2] if in_params else path
        kernels = frozenset[str]()
        if path in paths_of_statistics:
            if path in norm_of:
                norm = norm_of[path]
                roles.norms[name] = norm.partition("/")[2] if in_params else norm
        elif (
            len(aval.shape) >= 2
            and jnp.issubdtype(aval.dtype, jnp.inexact)
            and (path.startswith("params/") or not in_params)
        ):
            roles.candidates.append(name)
            kernels = frozenset([name])
        roles.inputs.append(Fixed(size_of(var), kernels, leaf=name))
    return roles


def _trace(
    apply_fn: Callable[..., Any], variables: Any, args: Any, kwargs: Any
) -> core.Jaxpr:
    """Return the jaxpr of a call; its inputs are the variables, then the arrays."""
    given = (args, kwargs)
    array_types = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
    arrays = jax.tree.map(lambda x: x if isinstance(x, array_types) else None, given)

    def evaluate(variables: Any, arrays: Any) -> Any:
        args, kwargs = jax.tree.map(
            lambda array, x: x if array is None else array,
            arrays,
            given,
            is_leaf=lambda x: x is None,
        )
        return apply_fn(variables, *args, **kwargs)

    return open_jaxpr(jax.make_jaxpr(evaluate)(variables, arrays))
