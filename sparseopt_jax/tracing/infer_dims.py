"""The axes of every kernel, read off the model that uses it."""

from collections.abc import Callable
from typing import Any

import jax

from sparseopt_jax.layers.neuron_dims import InferredDims
from sparseopt_jax.tracing.kernel_axes import AxesReader, Known
from sparseopt_jax.tracing.kernel_trace import candidates
from sparseopt_jax.tracing.model_program import model_program


def infer_dims(
    apply_fn: Callable[..., Any], variables: Any, *args: Any, **kwargs: Any
) -> InferredDims:
    """Read off a model which axes of each kernel its neurons sum over.

    The model is traced. If a kernel, in any arrangement, is an operand of a matrix
    product or a convolution, the contracted axes are the inputs of its neurons. Axes
    that it shares with the other operand, or that a loop runs along, are a stack of
    separate layers. This works for any module library: attention, experts, scanned and
    vmapped layers, kernels that are transposed, normalised, or used several times.

    Args:
      apply_fn: ``apply_fn(variables, *args, **kwargs)`` evaluates the model, as
        ``model.apply`` does in linen and ``lambda state, x: nnx.merge(graphdef,
        state)(x)`` in nnx.
      variables: all variables. If there is a collection ``"params"`` at the top, the
        paths omit its name, and other collections hold no kernels.
      *args: the inputs of one call. Only shapes and dtypes of these and of the
        variables are read: ``jax.ShapeDtypeStruct`` can replace any array.
      **kwargs: further arguments; values that are not arrays are passed unchanged.

    Returns:
      A mapping from kernel paths to ``NeuronDims``, which every ``dims=`` accepts.
      Undecided kernels follow the convention; ``undecided`` has the reasons.

    Raises:
      ValueError: if ``variables`` hold no arrays, or no kernel multiplies anything.

    Examples:
      >>> import flax.linen as nn
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> model = nn.MultiHeadDotProductAttention(4)
      >>> x = jax.ShapeDtypeStruct((1, 8, 64), jnp.float32)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> dims = so.infer_dims(model.apply, variables, x)
      >>> dims["query/kernel"]
      NeuronDims(reduction_axis=(0,), output_axis=(1, 2))
      >>> topology = so.static(0.9, dims=dims)
    """
    leaves = jax.tree.leaves((variables, args, kwargs))
    layouts = candidates(variables)
    layouts += [None] * (len(leaves) - len(layouts))
    first_input = len(jax.tree.leaves(variables))
    jaxpr, taken, *_ = model_program(apply_fn, (variables, *args), kwargs)
    values = [Known(leaves[i].shape, is_data=i >= first_input) for i in taken]
    kernels = [layout.path for layout in layouts if layout]
    reader = AxesReader()
    axes = reader.read(jaxpr, values, [layouts[index] for index in taken])
    reasons = reader.trouble | reader.conflicts
    undecided = {
        path: reasons.get(path, "not used by apply_fn")
        for path in kernels
        if path not in axes
    }
    if not axes:
        listed = "; ".join(f"{path}: {why}" for path, why in undecided.items())
        raise ValueError(f"no kernel multiplies any inputs ({listed})")
    return InferredDims(
        {path: axes[path] for path in kernels if path in axes}, undecided
    )
