"""The products of a model with its kernels, found before these become compact."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sparseopt_jax.compute.arranged_kernel import KernelUseError
from sparseopt_jax.compute.dispatch import Dispatch
from sparseopt_jax.compute.kernel_products import BlockShape
from sparseopt_jax.compute.model_evaluation import evaluate_model, path_of
from sparseopt_jax.masks.compact_kernel import CompactKernel
from sparseopt_jax.masks.layouts import Layout
from sparseopt_jax.trees import paths


class _Recorder(Dispatch):
    """Records every product.

    Attributes:
      products: for each kernel's path, the products that contain it.
    """

    def __init__(self):
        super().__init__(by="auto", measure=False)
        self.products: dict[str, list[BlockShape]] = {}

    def by_block(self, path: str, shape: BlockShape, dtype: Any) -> bool:
        """Record the product, and run it by block."""
        self.products.setdefault(path, []).append(shape)
        return True


def model_products(
    apply_fn: Callable[[Any], Any], params: Any, layouts: Mapping[str, Layout]
) -> dict[str, list[BlockShape] | str]:
    """Return the products of a model with its kernels, without computing any numbers.

    Args:
      apply_fn: evaluates the model on its parameters.
      params: any pytree of arrays or ``jax.ShapeDtypeStruct``.
      layouts: by path, the layouts of the kernels that would become compact.

    Returns:
      For each kernel its products, none if it is not used, or the reason why the model
      needs its dense array.
    """
    refused: dict[str, str] = {}
    while True:
        recorder = _Recorder()
        compact = {p: x for p, x in layouts.items() if path_of(p) not in refused}

        def stand_in(path: str, leaf: Any, compact: Any = compact) -> Any:
            if path not in compact:
                return leaf
            layout: Layout = compact[path]
            places = (*layout.index_shape, 3)
            return CompactKernel(
                jax.ShapeDtypeStruct(layout.shape, leaf.dtype),
                jax.ShapeDtypeStruct(places, jnp.float32),
                layout,
            )

        def evaluate(params: Any, recorder: Any = recorder) -> Any:
            evaluate_model(apply_fn, recorder, (params,), {})

        try:
            jax.eval_shape(evaluate, paths.map_with_paths(stand_in, params))
        except KernelUseError as error:
            refused[error.path] = error.reason
            continue
        return {
            path: refused.get(path_of(path), recorder.products.get(path_of(path), []))
            for path in layouts
        }
