"""Whether a calibration belongs to the parameters, and what it says of their axes."""

from typing import Any

from sparseopt_jax.layers.leaf_plan import LeafPlan
from sparseopt_jax.layers.neurons import Dims, chosen_dims, same_axes
from sparseopt_jax.pruning.calibration import Calibration
from sparseopt_jax.pruning.input_statistics import Inputs, check_inputs
from sparseopt_jax.tracing.model_program import has_collections


def calibration_dims(calibration: Calibration | None) -> Dims:
    """Return the axes that a model sums over, as ``resolve_axes`` takes them.

    Args:
      calibration: None for the convention. That it belongs to the parameters is for
        ``check_fit`` to say.

    Returns:
      A function of path and leaf, or None.
    """
    if calibration is None:
        return None
    dims = calibration.dims
    return lambda path, leaf: chosen_dims(dims, path, leaf)[0]


def kernel_name(path: str, tree: Any) -> str:
    """Return the path of a kernel in a calibration, which leaves out ``"params"``."""
    return path.removeprefix("params/") if has_collections(tree) else path


def needed_inputs(
    calibration: Calibration, method: str, tree: Any, plan: LeafPlan
) -> Inputs:
    """Return the statistics of a sparse leaf's inputs, which must fit it.

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
    check_fit(calibration, tree, plan)
    if method == "sparsegpt" and inputs.gram is None:
        raise ValueError(
            "sparsegpt needs the Gram matrix of the inputs of "
            f"{plan.path!r}: call calibrate with gram=True"
        )
    return inputs


def check_fit(calibration: Calibration, tree: Any, plan: LeafPlan) -> None:
    """Raise if what a calibration knows of a sparse leaf is not so.

    Args:
      calibration: statistics by path.
      tree: the parameters.
      plan: the leaf, and the axes that are taken for its neurons.

    Raises:
      ValueError: if it was made with another shape, or the model has other neurons.
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
            f"over axes {plan.axes.reduction} and lie along {plan.axes.output}; the "
            f"model sums over {inputs.axes.reduction} and has them along "
            f"{inputs.axes.output}: leave dims out, the calibration has the axes"
        )
