"""Removal of dead neurons, which makes layers physically smaller."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.arguments.checks import check_concrete, described, integer
from sparseopt_jax.layers.eligibility import array_leaves
from sparseopt_jax.pruning.neurons.decisions import Decider
from sparseopt_jax.pruning.neurons.products import Product
from sparseopt_jax.pruning.neurons.reader import NeuronReader
from sparseopt_jax.pruning.neurons.report import LayerNeurons, NeuronReport
from sparseopt_jax.pruning.neurons.smaller_variables import silenced, smaller
from sparseopt_jax.pruning.neurons.verification import Call
from sparseopt_jax.reports import flops
from sparseopt_jax.tracing.kernel_trace import candidates
from sparseopt_jax.tracing.model_program import (
    has_collections,
    is_array,
    model_program,
)
from sparseopt_jax.trees import paths


def remove_neurons(
    apply_fn: Callable[..., Any],
    variables: Any,
    *args: Any,
    min_neurons: int = 1,
    verify: bool = True,
    **kwargs: Any,
) -> tuple[Any, NeuronReport]:
    """Cut dead neurons out of a trained model; its outputs stay equal up to rounding.

    A neuron, or a channel of a convolution, is dead if its output is the same for every
    input (because it has no incoming weights, or the scale of its norm is 0), or if no
    layer reads it because all its outgoing weights are zero. It is cut out of the
    kernel that computes it, of biases, of scales, offsets and statistics of Batch
    Normalization, and of all kernels that read it. Its constant output is folded into
    the next layer's bias or, if a norm follows without a bias, into the running mean of
    the norm. So train sparsely or prune first (``structure=so.Channel()`` sets whole
    neurons to zero): only zeros in ``variables`` count, and masks are not needed.

    Neurons are found in the traced model, for any module library. They are followed
    through activations, biases, batch norms, pooling and flattening, from the kernel
    that computes them to the kernels that read them, gated branches (GLU) included. A
    neuron stays if its removal cannot be proven exact, and the report says why:
    residual streams; the widths of LayerNorm, GroupNorm, RMSNorm and softmax; attention
    heads; shared, grouped and stacked kernels, and those in loops; concatenated and
    split features; the model's inputs and outputs. Neurons with constants other than 0
    stay if no bias follows, if a convolution pads with zeros, because the constant
    would be missing at the border, or if they are summed over positions without a
    division by their number.

    Args:
      apply_fn: ``apply_fn(variables, *args, **kwargs)`` evaluates the model for
        inference, as ``model.apply`` with ``train=False`` does in linen and ``lambda
        state, x: nnx.merge(graphdef, state)(x)`` in nnx.
      variables: all variables, as arrays.
      *args: the inputs of one call, as arrays or ``jax.ShapeDtypeStruct``. The result
        is valid for any values and batch size: one example of the usual size is enough.
        Sequences need two positions if the model adds arrays that are not in
        ``variables`` to them: at length 1 such an array looks like a bias.
      min_neurons: minimum number of neurons that every layer keeps, dead or not.
      verify: whether to compare outputs for ``args``, if they are arrays: with the
        smaller variables if ``apply_fn`` accepts them, else with variables of the old
        shapes that do not read removed neurons. ``report.verified`` says which.
      **kwargs: treated like ``args``.

    Returns:
      Variables in the same tree, with smaller arrays of the same dtypes, and a
      ``NeuronReport`` to print. NumPy arrays remain NumPy arrays.
      The smaller variables fit a model built with the widths in ``report.widths``, by
      kernel path: in linen, modules with these ``features``. Functions of arrays,
      Equinox modules and NNX modules, whose widths follow from their arrays, accept
      them directly.

    Raises:
      TypeError: if ``variables`` are not concrete arrays.
      ValueError: if ``min_neurons`` is below 1, no kernel multiplies anything, or
        outputs differ by more than rounding.

    Note:
      All values are assumed to be finite: 0 times the output of a removed neuron is 0.
      A number that the model computes from a width, such as a factor 1 / width, differs
      in the smaller model: comparing outputs reveals it if ``apply_fn`` accepts the
      smaller variables. Masks and optimizer states are not cut: to continue training,
      initialise the optimizer again.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> def apply_fn(params, x):
      ...     hidden = jnp.maximum(x @ params["w1"] + params["b1"], 0)
      ...     return hidden @ params["w2"] + params["b2"]
      >>> params = {
      ...     "w1": jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]),
      ...     "b1": jnp.array([0.0, 5.0, 0.0]),
      ...     "w2": jnp.array([[1.0, 2.0], [10.0, 20.0], [0.0, 0.0]]),
      ...     "b2": jnp.array([1.0, 1.0]),
      ... }
      >>> params, report = so.remove_neurons(apply_fn, params, jnp.ones((1, 2)))
      >>> print(report)
      layer  shape  now  neurons  left  why the rest stays
      w1     2x3    2x1        3     1
      w2     3x2    1x2        2     2  outputs of the model
      17 parameters before, 7 left (41.18%).
      24 FLOPs of kernels in the given call before, 8 left (33.33%).
      Outputs of the smaller model agree for the given inputs.
      >>> print(params["b2"])  # 1 + 5 * 10 and 1 + 5 * 20
      [ 51. 101.]
    """
    if not callable(apply_fn):
        raise TypeError(f"apply_fn must be a function, got {described(apply_fn)}")
    least = integer("min_neurons", min_neurons, 1)
    named = array_leaves(variables, "variables", numbers=True)
    check_concrete(variables, "remove_neurons", "return the variables first")
    for path, leaf in named.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"remove_neurons reads values, but {path!r} has only a shape: pass "
                "the trained variables"
            )
    leaves, structure = jax.tree.flatten(variables)
    decider = _decided(apply_fn, variables, args, kwargs, least)
    places = decider.reader.axes
    result = [
        smaller(leaf, place, decider) if place in places else leaf
        for place, leaf in enumerate(leaves)
    ]
    small = structure.unflatten(result)
    verified = ""
    if verify and decider.decision.stays:
        silent = [
            silenced(leaf, place, decider) if place in places else leaf
            for place, leaf in enumerate(leaves)
        ]
        call = Call(apply_fn, args, kwargs)
        verified = call.compared(variables, small, structure.unflatten(silent))
    return small, NeuronReport(
        layers=_layers(variables, leaves, result, decider),
        parameters=_count(variables, leaves),
        parameters_left=_count(variables, result),
        verified=verified,
    )


def _decided(
    apply_fn: Callable[..., Any],
    variables: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    least: int,
) -> Decider:
    """Follow a model's neurons, and decide which to remove."""
    leaves = jax.tree.leaves(variables)
    program = model_program(apply_fn, (variables, *args), kwargs)
    places = [place for place in program.taken if place < len(leaves)]
    reader = NeuronReader()
    values = [leaves[place] for place in places]
    # In the dtypes of the program, to which JAX converts NumPy arrays.
    values = [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in values]
    reader.read(program.jaxpr, values, places)
    if not reader.products:
        raise ValueError(
            "no kernel multiplies any inputs: pass the model's inputs to "
            "remove_neurons as arguments"
        )
    names = _names(variables, list(paths.leaves_by_path(variables)))
    decider = Decider(reader, dict(enumerate(names)), least)
    decider.decide()
    return decider


def _names(variables: Any, known: list[str]) -> list[str]:
    if has_collections(variables):
        return [path.partition("/")[2] for path in known]
    return known


def _layers(
    variables: Any, leaves: list[Any], result: list[Any], decider: Decider
) -> tuple[LayerNeurons, ...]:
    """Return one entry for each kernel, those of the traced products first."""
    layers: dict[int, LayerNeurons] = {}
    for product in decider.reader.products:
        kernels = [leaf for leaf in sorted(product.leaves) if leaves[leaf].ndim >= 2]
        for number, place in enumerate(kernels):
            before, after = _flops(product, decider) if number == 0 else (0, 0)
            if place in layers:
                before += layers[place].flops
                after += layers[place].flops_left
            neurons = [
                (product.weights.shape[axis], decider.stays_of(product, axis))
                for axis in product.kept
            ]
            layers[place] = LayerNeurons(
                path=decider.names[place],
                shape=leaves[place].shape,
                shape_left=result[place].shape,
                neurons=math.prod(size for size, _ in neurons),
                neurons_left=math.prod(stays for _, stays in neurons),
                flops=before,
                flops_left=after,
                why=decider.why(product),
            )
    for place, layout in enumerate(candidates(variables)):
        if layout is not None and place not in layers:
            shape = leaves[place].shape
            layers[place] = LayerNeurons(
                path=decider.names[place],
                shape=shape,
                shape_left=result[place].shape,
                neurons=shape[-1],
                neurons_left=result[place].shape[-1],
                flops=0,
                flops_left=0,
                why=decider.why_not_followed(place),
            )
    return tuple(layers.values())


def _flops(product: Product, decider: Decider) -> tuple[int, int]:
    """Return a product's FLOPs before and after, two for each multiplication."""
    before = flops.forward_flops(product.weights.size, product.places)
    after = float(before)
    for axis, size in enumerate(product.weights.shape):
        after *= decider.stays_of(product, axis) / size
    for label in product.others:
        after *= decider.share(label)
    return before, round(after)


def _count(variables: Any, leaves: list[Any]) -> int:
    """Count the parameters among some leaves."""
    named = list(paths.leaves_by_path(variables))
    in_params = has_collections(variables)
    return sum(
        math.prod(leaf.shape)
        for path, leaf in zip(named, leaves, strict=True)
        if is_array(leaf)
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
        and (path.startswith("params/") or not in_params)
    )
