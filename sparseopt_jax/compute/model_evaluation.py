"""One call of a model some of whose arguments are compact kernels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from sparseopt_jax.compute.arranged_kernel import ArrangedKernel, KernelUseError
from sparseopt_jax.compute.dispatch import Dispatch
from sparseopt_jax.compute.kernel_evaluator import KernelEvaluator
from sparseopt_jax.masks.compact_kernel import CompactKernel, is_compact
from sparseopt_jax.trees import paths


def evaluate_model(
    apply_fn: Callable[..., Any],
    dispatch: Dispatch,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """Evaluates a model with the active blocks of its compact kernels.

    Args:
      apply_fn: the model.
      dispatch: which products run by block.
      args: its positional arguments.
      kwargs: its other arguments.

    Returns:
      What the model returns.

    Raises:
      ValueError: if a compact kernel is used in a way that needs the dense array.
    """
    leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=is_compact)
    names = _paths((args, kwargs))
    kernels = {at: names[at] for at, leaf in enumerate(leaves) if is_compact(leaf)}
    dispatch.check_paths(list(kernels.values()))
    traced = [at for at, leaf in enumerate(leaves) if at in kernels or _is_array(leaf)]
    outputs: list[Any] = []
    out_structure: Any = None

    def model(arrays: list[Any]) -> list[Any]:
        nonlocal outputs, out_structure
        given = list(leaves)
        for at, array in zip(traced, arrays, strict=True):
            given[at] = array
        args, kwargs = jax.tree.unflatten(structure, given)
        outputs, out_structure = jax.tree.flatten(apply_fn(*args, **kwargs))
        return [x for x in outputs if _is_array(x)]

    stand_ins = [
        jax.ShapeDtypeStruct(leaves[at].shape, leaves[at].dtype)
        if at in kernels
        else leaves[at]
        for at in traced
    ]
    jaxpr = jax.make_jaxpr(model)(stand_ins)
    values = [
        _value(kernels[at], at, leaves[at], dispatch) if at in kernels else leaves[at]
        for at in traced
    ]
    evaluator = KernelEvaluator(dispatch.by_block)
    results = iter(evaluator.run(jaxpr.jaxpr, jaxpr.consts, values))
    returned = [
        _returned(next(results), leaves) if _is_array(x) else x for x in outputs
    ]
    return jax.tree.unflatten(out_structure, returned)


def _value(path: str, origin: int, kernel: CompactKernel, dispatch: Dispatch) -> Any:
    """What stands for a compact kernel: its blocks, or a dense array if asked for."""
    if dispatch.way(path) == "dense":
        return kernel.dense()
    return ArrangedKernel.of(path, origin, kernel)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _returned(result: Any, leaves: Sequence[Any]) -> Any:
    """A result of the model: a kernel that is as it came is compact, as it came."""
    if not isinstance(result, ArrangedKernel):
        return result
    if result.arrangement.is_changed:
        raise KernelUseError(
            result.path,
            "is returned cast or transposed",
            f"apply_fn returns the compact kernel {result.path!r} cast or transposed: "
            "return the parameters as they are, or nothing of them",
        )
    return leaves[result.arrangement.origin]


def _paths(arguments: Any) -> list[str]:
    """The path of each leaf within its argument."""
    return [
        path_of(paths.path_string(key_path[2:]))
        for key_path, _ in paths.leaves_with_path(arguments, is_compact)
    ]


def path_of(path: str) -> str:
    """A path as the optimizer knows it, who is given the parameters alone."""
    return path.removeprefix("params/")
