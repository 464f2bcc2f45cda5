"""Checks that a calibration fits the parameters, and the kernel axes that it holds."""

from typing import Any

from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims, chosen_dims, same_axes
from sparseopt_jax.pruning.calibration import Calibration
from sparseopt_jax.pruning.input_statistics import Inputs, check_inputs, check_numbers
from sparseopt_jax.tracing.model_program import has_collections


def calibration_dims(calibration: Calibration | None) -> Dims:
    """Return the axes that a model sums over, in the form ``resolve_axes`` accepts.

    Args:
      calibration: None for the convention. ``check_fit`` checks that it fits the
        parameters.

    Returns:
      A function of path and leaf, or None.
    """
    if calibration is None:
        return None
    dims = calibration.dims
    return lambda path, leaf: chosen_dims(dims, path, leaf)[0]


def kernel_name(path: str, tree: Any) -> str:
    """Return the path of a kernel in a calibration, which omits ``"params"``."""
    return path.removeprefix("params/") if has_collections(tree) else path


def needed_inputs(
    calibration: Calibration, method: str, tree: Any, plan: LeafPlan
) -> Inputs:
    """Return the statistics of a sparse leaf's inputs, after checking that they fit.

    Args:
      calibration: statistics by path.
      method: the method that needs them, for the message.
      tree: the parameters.
      plan: the leaf, and the axes used for its neurons.

    Returns:
      The statistics.

    Raises:
      ValueError: if there are none, if they have another shape or other axes, or if
        they are not finite or come from no samples.
    """
    inputs = calibration.need(kernel_name(plan.path, tree), method)
    check_fit(calibration, tree, plan)
    if method == "sparsegpt" and inputs.gram is None:
        raise ValueError(
            "sparsegpt needs the Gram matrix of the inputs of "
            f"{plan.path!r}: call calibrate with gram=True"
        )
    check_numbers(plan.path, inputs, method)
    return inputs


def check_fit(calibration: Calibration, tree: Any, plan: LeafPlan) -> None:
    """Raise if a calibration contradicts the shape or the axes of a sparse leaf.

    Args:
      calibration: statistics by path.
      tree: the parameters.
      plan: the leaf, and the axes used for its neurons.

    Raises:
      ValueError: if it was made with another shape, or the model uses other axes.
    """
    name = kernel_name(plan.path, tree)
    if name not in calibration:
        return
    inputs = calibration[name]
    check_inputs(plan.path, plan.leaf, inputs)
    if not same_axes(plan.axes, inputs.axes, inputs.shape):
        assert plan.axes is not None
        raise ValueError(
            f"dims say that the neurons of {plan.path!r} with shape {inputs.shape} sum "
            f"over axes {plan.axes.reduction} and run along {plan.axes.output}, but in "
            f"the model they sum over {inputs.axes.reduction} and run along "
            f"{inputs.axes.output}: omit dims, because the calibration has the axes"
        )
