"""One-shot pruning of a trained network.

The methods differ in the score that decides which weights to keep, and in what the
score needs: nothing, a gradient, or statistics of the inputs. SparseGPT also updates
the weights that it keeps.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparseopt_jax.arguments.checks import chosen, described
from sparseopt_jax.arrays.selection import top_k_masks
from sparseopt_jax.layers import distributions
from sparseopt_jax.layers.distributions import Distribution, First
from sparseopt_jax.layers.eligibility import Include, Where, check_where
from sparseopt_jax.layers.leaf_plan import LeafPlan, Rules
from sparseopt_jax.layers.neurons import Dims, check_dims
from sparseopt_jax.layers.plans import plan_leaves
from sparseopt_jax.layers.structures import (
    ConstantFanIn,
    Structures,
    Unstructured,
    check_structure,
)
from sparseopt_jax.masks.state import zero_masked
from sparseopt_jax.pruning.calibration import Calibration
from sparseopt_jax.pruning.calibration_fit import (
    calibration_dims,
    check_fit,
    needed_inputs,
)
from sparseopt_jax.pruning.input_statistics import Inputs
from sparseopt_jax.pruning.scores import gradients_by_path, weight_scores
from sparseopt_jax.pruning.sparsegpt import SparseGPT
from sparseopt_jax.tracing.model_program import has_collections
from sparseopt_jax.trees import paths
from sparseopt_jax.trees.prng_keys import typed_key

# The argument that each method requires.
_NEEDS = {
    "magnitude": None,
    "random": None,
    "saliency": "grads",
    "wanda": "calibration",
    "sparsegpt": "calibration",
}


class Pruned(NamedTuple):
    """A pruned network.

    Attributes:
      params: a tree like the parameters, exact zeros where a mask is False.
      masks: bool arrays in the same structure, ``optax.MaskedNode()`` at dense leaves.
        ``static(masks=...)`` and the other topologies accept them.
    """

    params: Any
    masks: Any


def prune(
    params: Any,
    method: str | SparseGPT = "magnitude",
    *,
    sparsity: float | None = None,
    distribution: str | Mapping[str, float] | Distribution | None = None,
    scope: str = "layer",
    first: First = True,
    structure: Structures | None = None,
    where: Where | None = None,
    include: Include | None = None,
    dims: Dims = None,
    calibration: Calibration | None = None,
    grads: Any = None,
    key: jax.typing.ArrayLike = 0,
) -> Pruned:
    """Prune a trained network once, without training.

    ======================  ==========================================  ===============
    method                  score; the highest stay                     needs
    ======================  ==========================================  ===============
    ``"magnitude"``         ``|w|``
    ``"random"``            a random number
    ``"saliency"``          ``|w g|``, g the weight's gradient          ``grads``
    ``"wanda"``             ``|w| ||x||``, x the weight's input         ``calibration``
    ``"sparsegpt"``         least error of the layer's output without   ``calibration``
                            the weight; the others are updated to
                            compensate
    ======================  ==========================================  ===============

    Args:
      params: the trained parameters: any pytree of arrays, nnx State, or all variables
        of a linen model, of which only the collection ``"params"`` is pruned.
      method: a name above, or a ``SparseGPT(damping=..., block_size=...)``.
      sparsity: fraction of zeros in the sparse layers, in [0, 1). Optional if the
        structure fixes it.
      distribution: None for the same sparsity in every layer, including the first, as
        is usual when no training follows; or as in ``static``.
      scope: ``"layer"`` ranks the weights within each layer; ``"global"`` ranks those
        of all layers together, without a distribution.
      first: as in ``static``, for the distribution ``"uniform"``.
      structure: which weights may be active within a layer, for all kernels or by globs
        over paths. None is ``Unstructured()``; for ``"wanda"`` with scope ``"layer"``
        it is ``ConstantFanIn()``, which ranks the weights of each neuron, as published.
        ``"sparsegpt"`` accepts ``Unstructured()``, ``ConstantFanIn()`` and ``NM`` along
        a reduction axis.
      where: as in ``static``.
      include: as in ``static``.
      dims: as in ``static``. None uses the axes that the calibration found in the
        model, and the convention for all other kernels.
      calibration: the result of ``calibrate`` for the same model.
      grads: a tree like ``params``: the gradient of the loss, usually a mean over data.
      key: seed or PRNG key for ``"random"``, as in ``sparsify``.

    Returns:
      The pruned parameters, in a container like that of ``params``, and the masks. All
      leaves keep their dtypes, and NumPy arrays remain NumPy arrays.

    Raises:
      ValueError: for an unknown method, a sparsity outside [0, 1), required gradients
        or statistics that are missing, have another shape or are not finite, a
        structure that does not fit a shape or the method, or a layer, also one of a
        stack, that would lose all its weights.
      TypeError: for an argument of the wrong type.

    Note:
      The published codes of Wanda and SparseGPT prune layer by layer; the inputs of
      each layer come from a network whose earlier layers are already pruned. Here all
      inputs come from the calibrated network. To prune in stages, calibrate and prune
      again with another ``where``. Weights whose score is NaN rank below all others, so
      NaN weights are removed first; SparseGPT raises.

    References:
      Sun et al., A simple and effective pruning approach for large language models
      (Wanda), 2023 (arXiv 2306.11695). Frantar & Alistarh, SparseGPT, 2023 (arXiv
      2301.00774). Molchanov et al., 2017 (arXiv 1611.06440), for the saliency.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [0.5, 2.0]]), "bias": jnp.ones(2)}
      >>> pruned = so.prune(params, "magnitude", sparsity=0.5)
      >>> print(pruned.params["kernel"])
      [[3. 0.]
       [0. 2.]]
      >>> topology = so.static(masks=pruned.masks)

      Wanda also considers the inputs, of which the second is ten times larger:

      >>> calibration = so.calibrate(
      ...     lambda params, x: x @ params["kernel"] + params["bias"],
      ...     params,
      ...     [jnp.array([[1.0, 10.0], [1.0, -10.0]])],
      ... )
      >>> pruned = so.prune(params, "wanda", sparsity=0.5, calibration=calibration)
      >>> print(pruned.masks["kernel"])
      [[False False]
       [ True  True]]
    """
    name = _check_method(method, calibration, grads)
    key = typed_key(key)
    is_global = _check_scope(scope, name, distribution, structure)
    if structure is None:
        by_neuron = name == "wanda" and not is_global
        structure = ConstantFanIn() if by_neuron else Unstructured()
    plans = _plans(
        params,
        sparsity=sparsity,
        distribution={} if distribution is None else distribution,
        first=first,
        structure=structure,
        where=where,
        include=include,
        dims=calibration_dims(calibration) if dims is None else dims,
    )
    leaves = {plan.path: plan for plan in plans if plan.layer}
    inputs = _inputs(name, calibration, params, leaves)
    if name == "sparsegpt":
        solver = method if isinstance(method, SparseGPT) else SparseGPT()
        solved = {
            path: solver.solve(path, plan, inputs[path])
            for path, plan in leaves.items()
        }
        params = paths.map_with_paths(
            lambda path, leaf: solved[path][0] if path in solved else leaf, params
        )
        chosen = {path: mask for path, (_, mask) in solved.items()}
    else:
        gradients = gradients_by_path(grads, leaves) if name == "saliency" else {}
        ranked = {
            path: weight_scores(name, key, plan, inputs.get(path), gradients.get(path))
            for path, plan in leaves.items()
        }
        choose = _choose_globally if is_global else _choose_by_layer
        chosen = choose(leaves, ranked, sparsity)
    masks = paths.map_with_paths(
        lambda path, _: chosen.get(path, optax.MaskedNode()), params
    )
    return Pruned(zero_masked(masks, params), masks)


def _inputs(
    method: str,
    calibration: Calibration | None,
    params: Any,
    leaves: Mapping[str, LeafPlan],
) -> dict[str, Inputs]:
    """Return the statistics that a method needs; check that they fit all leaves."""
    if calibration is None:
        return {}
    for plan in leaves.values():
        check_fit(calibration, params, plan)
    if _NEEDS[method] != "calibration":
        return {}
    return {
        path: needed_inputs(calibration, method, params, plan)
        for path, plan in leaves.items()
    }


def _check_method(method: Any, calibration: Any, grads: Any) -> str:
    name = "sparsegpt" if isinstance(method, SparseGPT) else method
    if not isinstance(name, str) or name not in _NEEDS:
        raise ValueError(
            f"method must be one of {', '.join(_NEEDS)}, or a so.SparseGPT, "
            f"got {described(method)}: call so.prune(params, method, ...)"
        )
    if calibration is not None and not isinstance(calibration, Calibration):
        raise TypeError(
            f"calibration must be the result of so.calibrate, got {calibration!r}"
        )
    if _NEEDS[name] == "calibration" and calibration is None:
        raise ValueError(
            f"{name} needs statistics of the inputs: pass calibration="
            "so.calibrate(apply_fn, variables, batches)"
        )
    if _NEEDS[name] == "grads" and grads is None:
        raise ValueError(
            f"{name} needs the gradient of the loss: pass grads, a tree like params"
        )
    return name


def _check_scope(
    scope: str,
    method: str,
    distribution: str | Mapping[str, float] | Distribution | None,
    structure: Structures | None,
) -> bool:
    """Return whether all layers compete; check the scope against other arguments."""
    if not isinstance(scope, str) or scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', got {described(scope)}")
    if scope == "layer":
        if isinstance(distribution, str) and distribution == "global":
            raise ValueError(
                "distribution='global' is not a distribution: pass scope='global'"
            )
        return False
    if distribution is not None:
        raise ValueError(
            "scope='global' distributes the weights by their scores: omit "
            f"distribution, got {described(distribution)}"
        )
    if method == "sparsegpt" or structure not in (None, Unstructured()):
        raise ValueError(
            "scope='global' ranks single weights by their scores: it cannot be "
            f"combined with a structure or with 'sparsegpt', got method {method!r} and "
            f"structure {structure!r}"
        )
    return True


def _plans(
    params: Any,
    *,
    sparsity: float | None,
    distribution: str | Mapping[str, float] | Distribution,
    first: First,
    structure: Structures,
    where: Where | None,
    include: Include | None,
    dims: Dims,
) -> list[LeafPlan]:
    if sparsity is not None:
        distributions.check_sparsity(sparsity)
    distributions.check_distribution(distribution)
    check_structure(structure)
    check_dims(dims)
    check_where(where, include)
    distributions.check_first(first, distribution)

    def is_chosen(path: str, leaf: Any) -> bool:
        if has_collections(params) and not path.startswith("params/"):
            return False
        return where is None or chosen("where", where, path, leaf)

    rules = Rules(
        sparsity=sparsity,
        distribution=distribution,
        structure=structure,
        where=is_chosen,
        masks=None,
        dims=dims,
        min_fan_in=0,
        include=include,
        first=first,
    )
    plans = plan_leaves(rules, params)
    if not plans:
        raise ValueError(f"params must hold arrays, got {params!r}")
    return plans


def _choose_by_layer(
    leaves: Mapping[str, LeafPlan],
    ranked: Mapping[str, jax.Array],
    sparsity: float | None,
) -> dict[str, jax.Array]:
    del sparsity  # the plans have it
    return {
        path: plan.units.choose(ranked[path], plan.per_cell)  # pyright: ignore
        for path, plan in leaves.items()
    }


def _choose_globally(
    leaves: Mapping[str, LeafPlan],
    ranked: Mapping[str, jax.Array],
    sparsity: float | None,
) -> dict[str, jax.Array]:
    assert sparsity is not None
    total = sum(x.size for x in ranked.values())
    everywhere = [jnp.ones(x.shape, bool) for x in ranked.values()]
    kept = round(total * (1 - sparsity))
    masks = top_k_masks([*ranked.values()], kept, where=everywhere)
    chosen = dict(zip(leaves, masks, strict=True))
    empty = [
        name for path, mask in chosen.items() for name in _empty(leaves[path], mask)
    ]
    if empty:
        raise ValueError(
            f"sparsity {sparsity} over all layers would leave no weights in "
            f"{', '.join(empty)}: lower it, rank every layer separately "
            "(scope='layer'), or exclude these with where="
        )
    return chosen


def _empty(plan: LeafPlan, mask: jax.Array) -> list[str]:
    """Name the layers without weights: a kernel, or some layers of a stack of them."""
    stack = () if plan.axes is None else plan.axes.batch
    others = tuple(axis for axis in range(mask.ndim) if axis not in stack)
    has_weights = jnp.any(mask, others)
    if bool(jnp.all(has_weights)):
        return []
    if not stack:
        return [plan.path]
    empty = np.argwhere(np.logical_not(has_weights)).tolist()
    return [f"{plan.path}[{', '.join(map(str, layer))}]" for layer in empty]
