"""One call of a model with compact kernels among its arguments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sparseopt_jax.compute.arranged_kernel import ArrangedKernel, KernelUseError
from sparseopt_jax.compute.dispatch import Dispatch
from sparseopt_jax.compute.kernel_evaluator import KernelEvaluator
from sparseopt_jax.masks.compact_kernel import CompactKernel, is_compact, map_compact
from sparseopt_jax.tracing.model_program import model_program
from sparseopt_jax.trees import paths


def evaluate_model(
    apply_fn: Callable[..., Any],
    dispatch: Dispatch,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Evaluate a model with the active blocks of its compact kernels.

    Args:
      apply_fn: the model.
      dispatch: decides which products run by block.
      args: its positional arguments.
      kwargs: its keyword arguments.

    Returns:
      The result of the model.

    Raises:
      ValueError: if a compact kernel is used in a way that needs the dense array.
    """
    leaves = jax.tree.leaves((args, kwargs), is_leaf=is_compact)
    names = _paths((args, kwargs))
    kernels = {at: names[at] for at, leaf in enumerate(leaves) if is_compact(leaf)}
    dispatch.check_paths(list(kernels.values()))
    # Each stands for a single kernel; kernels stacked by ``vmap`` are rejected below.
    stand_ins = map_compact(
        lambda kernel: jax.ShapeDtypeStruct(kernel.shape, kernel.dtype), (args, kwargs)
    )
    program = model_program(apply_fn, *stand_ins)
    values = [
        _value(kernels[at], at, leaves[at], dispatch) if at in kernels else leaves[at]
        for at in program.taken
    ]
    evaluator = KernelEvaluator(dispatch.by_block)
    results = evaluator.run(program.jaxpr.jaxpr, program.jaxpr.consts, values)
    return program.outputs(_returned(result, leaves) for result in results)


def _value(path: str, origin: int, kernel: CompactKernel, dispatch: Dispatch) -> Any:
    """Return a compact kernel as its blocks, or as a dense array if requested."""
    if dispatch.way(path) == "dense":
        return kernel.dense()
    return ArrangedKernel.of(path, origin, kernel)


def _returned(result: Any, leaves: Sequence[Any]) -> Any:
    """Return a result of the model; an unchanged kernel is the original parameter."""
    if not isinstance(result, ArrangedKernel):
        return result
    if result.arrangement.is_changed:
        raise KernelUseError(
            result.path,
            "is returned cast or transposed",
            f"apply_fn returns the compact kernel {result.path!r} cast or transposed: "
            "return the parameters unchanged, or do not return them",
        )
    return leaves[result.arrangement.origin]


def _paths(arguments: Any) -> list[str]:
    """Return the path of each leaf within its argument."""
    return [
        path_of(paths.path_string(key_path[2:]))
        for key_path, _ in paths.leaves_with_path(arguments, is_compact)
    ]


def path_of(path: str) -> str:
    """Return a path without ``params/``, as in the optimizer's trees."""
    return path.removeprefix("params/")
