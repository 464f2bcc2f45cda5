"""Whether a calibration belongs to the parameters, and what it says of their axes."""

from collections.abc import Mapping
from typing import Any

from sparseopt_jax.calibration import Calibration
from sparseopt_jax.input_statistics import Inputs, check_inputs
from sparseopt_jax.leaf_plans import LeafPlan
from sparseopt_jax.neurons import Axes, Dims, NeuronDims


def has_collections(tree: Any) -> bool:
    """Whether a tree is all variables of a linen model, ``"params"`` among them."""
    return isinstance(tree, Mapping) and "params" in tree


def calibration_dims(calibration: Calibration | None, tree: Any) -> Dims:
    """The axes that a model sums over, as ``resolve_axes`` takes them.

    Args:
      calibration: None for the convention.
      tree: the parameters, which decide what paths look like.

    Returns:
      A function of path and leaf, or None.
    """
    if calibration is None:
        return None

    def dims(path: str, leaf: Any) -> NeuronDims | None:
        name = kernel_name(path, tree)
        if name not in calibration or tuple(leaf.shape) != calibration[name].shape:
            return None
        axes = calibration[name].axes
        return NeuronDims(axes.reduction, axes.output)

    return dims


def kernel_name(path: str, tree: Any) -> str:
    """The path of a kernel in a calibration, which leaves out ``"params"``."""
    return path.removeprefix("params/") if has_collections(tree) else path


def needed_inputs(
    calibration: Calibration, method: str, tree: Any, plan: LeafPlan
) -> Inputs:
    """The statistics of a sparse leaf's inputs, which must fit it.

    Args:
      calibration: statistics by path.
      method: what needs them, for the message.
      tree: the parameters.
      plan: the leaf, and the axes that are taken for its neurons.

    Returns:
      The statistics.

    Raises:
      ValueError: if there are none, or if they belong to another shape, or to other
        neurons than the axes say.
    """
    inputs = calibration.need(kernel_name(plan.path, tree), method)
    check_inputs(plan.path, plan.leaf, inputs)
    assert plan.axes is not None
    if _wide(plan.axes, inputs) != _wide(inputs.axes, inputs):
        raise ValueError(
            f"dims say that the neurons of {plan.path!r} with shape {inputs.shape} sum "
            f"over axes {plan.axes.reduction} and lie along {plan.axes.output}; the "
            f"model sums over {inputs.axes.reduction} and has them along "
            f"{inputs.axes.output}: leave dims out, the calibration has the axes"
        )
    if method == "sparsegpt" and inputs.gram is None:
        raise ValueError(
            "sparsegpt needs the Gram matrix of the inputs of "
            f"{plan.path!r}: call calibrate with gram=True"
        )
    return inputs


def _wide(axes: Axes, inputs: Inputs) -> list[tuple[int, ...]]:
    # What an axis of size 1 is called decides nothing.
    return [tuple(a for a in own if inputs.shape[a] > 1) for own in axes]
