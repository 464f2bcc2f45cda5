"""Pruning a trained network once: which weights stay, and what the others leave behind.

The methods differ in the score by which weights stay, and in what the score needs to
know: nothing, a gradient, or statistics of the inputs. One of them, SparseGPT, also
changes the weights that stay.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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

# What a method cannot do without.
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
      masks: bool arrays in the same structure, ``optax.MaskedNode()`` at dense leaves:
        what ``static(masks=...)`` and the other topologies take.
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
    method                  weights stay by                             needs
    ======================  ==========================================  ===============
    ``"magnitude"``         ``|w|``
    ``"random"``            chance
    ``"saliency"``          ``|w g|``                                   ``grads``
    ``"wanda"``             ``|w| ||x||``, x the weight's input         ``calibration``
    ``"sparsegpt"``         what the layer's output loses at best; the  ``calibration``
                            weights that stay make up for the others
    ======================  ==========================================  ===============

    Args:
      params: the trained parameters: any pytree of arrays, nnx State, or all variables
        of a linen model, of which only the collection ``"params"`` is pruned.
      method: a name above, or a ``SparseGPT(damping=..., block_size=...)``.
      sparsity: fraction of zeros in the sparse layers, in [0, 1). May be left out if
        the structure fixes it.
      distribution: None for the same sparsity in every layer, the first one included,
        as is customary where nothing is trained afterwards; or as in ``static``.
      scope: ``"layer"`` compares the weights of each layer; ``"global"`` those of all
        layers, without a distribution.
      first: as in ``static``, for the distribution ``"uniform"``.
      structure: what may be active within a layer, for all or by globs over paths.
        None lets all weights of a layer compete, but for ``"wanda"`` those of each
        neuron, ``ConstantFanIn()``, as published. ``"sparsegpt"`` takes
        ``Unstructured()``, ``ConstantFanIn()`` and ``NM`` along a reduction axis.
      where: as in ``static``.
      include: as in ``static``.
      dims: as in ``static``; kernels of a calibration that None leaves to convention
        have the axes that the model itself sums over.
      calibration: what ``calibrate`` gives for the same model.
      grads: a tree like ``params``, the gradient of the loss, usually a mean over data.
      key: seed or PRNG key for ``"random"``, as in ``sparsify``.

    Returns:
      The pruned parameters, in the container they came in, and the masks.

    Raises:
      ValueError: for an unknown method, a sparsity outside [0, 1), gradients or
        statistics that the method needs and that are missing or belong to another
        shape, a structure that fits no shape or not the method, a layer that would
        lose all weights.
      TypeError: for an argument of another kind.

    Note:
      The published codes of Wanda and SparseGPT go from layer to layer, each with the
      inputs that the layers pruned before leave it. Here all layers have the inputs
      of the network that was calibrated. To go in stages, calibrate and prune again
      with another ``where``.

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

      By what the inputs make of the weights, the first of which is ten times larger:

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
    """The statistics that a method needs, of a calibration that fits all leaves."""
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
            f"calibration must be what so.calibrate returns, got {calibration!r}"
        )
    if _NEEDS[name] == "calibration" and calibration is None:
        raise ValueError(
            f"{name} needs statistics of the inputs: give calibration="
            "so.calibrate(apply_fn, variables, batches)"
        )
    if _NEEDS[name] == "grads" and grads is None:
        raise ValueError(
            f"{name} needs the gradient of the loss: give grads, a tree like params"
        )
    return name


def _check_scope(
    scope: str,
    method: str,
    distribution: str | Mapping[str, float] | Distribution | None,
    structure: Structures | None,
) -> bool:
    """Return whether all layers compete, which must fit the other arguments."""
    if not isinstance(scope, str) or scope not in ("layer", "global"):
        raise ValueError(f"scope must be 'layer' or 'global', got {described(scope)}")
    if scope == "layer":
        if isinstance(distribution, str) and distribution == "global":
            raise ValueError(
                "distribution='global' is no distribution: pass scope='global'"
            )
        return False
    if distribution is not None:
        raise ValueError(
            "scope='global' shares the weights out by their scores: leave distribution "
            f"out, got {described(distribution)}"
        )
    if method == "sparsegpt" or structure not in (None, Unstructured()):
        raise ValueError(
            "scope='global' compares single weights by their scores: it goes "
            f"with no structure and not with 'sparsegpt', got method {method!r} and "
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
    empty = [path for path, mask in chosen.items() if not bool(mask.any())]
    if empty:
        raise ValueError(
            f"sparsity {sparsity} over all layers would leave no weight of "
            f"{', '.join(empty)}: lower it, let every layer compete by itself "
            "(scope='layer'), or exclude these by where"
        )
    return chosen
