"""Statistics of the inputs of every kernel of a trained model."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.layers.eligibility import Where, array_leaves
from sparseopt_jax.layers.neuron_dims import InferredDims
from sparseopt_jax.pruning.input_statistics import Inputs, add_moments
from sparseopt_jax.pruning.kernel_inputs import Computed, InputReader
from sparseopt_jax.tracing.kernel_layout import Layout
from sparseopt_jax.tracing.kernel_trace import candidates


@jax.tree_util.register_pytree_with_keys_class
class Calibration(Mapping[str, Inputs]):
    """Kernel path -> statistics of its inputs. A pytree, so it can be saved or moved.

    Attributes:
      undecided: kernel path -> why it has no statistics.
      dims: the axes of the kernels, which every ``dims=`` accepts.
    """

    def __init__(self, kernels: Mapping[str, Inputs], undecided: Mapping[str, str]):
        self._kernels = dict(kernels)
        self.undecided = dict(undecided)

    def __getitem__(self, path: str) -> Inputs:
        if path not in self._kernels:
            raise KeyError(self._why_missing(path))
        return self._kernels[path]

    def __contains__(self, path: object) -> bool:
        return path in self._kernels

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)

    def __repr__(self) -> str:
        counts = {path: int(inputs.count) for path, inputs in self._kernels.items()}
        return f"Calibration(samples={counts!r}, undecided={self.undecided!r})"

    @property
    def dims(self) -> InferredDims:
        """The axes of the kernels, which every ``dims=`` accepts."""
        axes = {path: inputs.axes for path, inputs in self._kernels.items()}
        return InferredDims(axes, self.undecided)

    def need(self, path: str, method: str) -> Inputs:
        """Return the statistics that a method requires.

        Raises:
          ValueError: if there are none, with the reason and the remedy.
        """
        if path not in self._kernels:
            raise ValueError(
                f"{method} needs statistics of the inputs of {path!r}: "
                f"{self._why_missing(path)}. Prune this kernel with another method, or "
                "exclude it with where="
            )
        return self._kernels[path]

    def _why_missing(self, path: str) -> str:
        known = ", ".join(self._kernels) or "(none)"
        reason = self.undecided.get(path, "calibrate found no such kernel")
        return f"{reason}; statistics exist for {known}"

    def tree_flatten_with_keys(self) -> Any:
        """Return the statistics as children and the rest as static data, for JAX."""
        keys = [jax.tree_util.DictKey(path) for path in self._kernels]
        aux = tuple(self._kernels), tuple(self.undecided.items())
        return list(zip(keys, self._kernels.values(), strict=True)), aux

    @classmethod
    def tree_unflatten(cls, aux: Any, children: Iterable[Any]) -> "Calibration":
        """Invert ``tree_flatten_with_keys``, for JAX."""
        kernels, undecided = aux
        return cls(dict(zip(kernels, children, strict=True)), dict(undecided))


def calibrate(
    apply_fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    gram: bool = True,
    where: Where | None = None,
    **kwargs: Any,
) -> Calibration:
    """Collect statistics of the inputs of every kernel over batches of data.

    The model is evaluated. If a kernel, in any layout and dtype, is an operand of a
    matrix product or a convolution, the other operand holds its inputs: all positions
    of a sequence, all patches of an image. This works for linen, nnx and any other
    module library, for attention, stacked layers (``vmap``, ``nn.scan``), grouped
    convolutions, recurrent cells and kernels that are used several times, whose
    statistics add up. ``undecided`` lists the kernels that cannot be followed, in one
    of their uses or in all: one that is also scaled or cut before it multiplies inputs
    has no statistics, because they would be incomplete. Rows that are looked up in
    a table do not count as a use, so tied embeddings have the statistics of the head.

    Args:
      apply_fn: ``apply_fn(variables, *batch, **kwargs)`` evaluates the model, as
        ``model.apply`` does in linen and ``lambda state, x: nnx.merge(graphdef,
        state)(x)`` in nnx.
      variables: all variables. If there is a collection ``"params"`` at the top, the
        paths omit its name, and other collections hold no kernels.
      batches: the inputs of successive calls. Each is a tuple of positional arguments,
        or any other value as the only argument. Batches of equal shapes compile once.
      gram: whether to keep the Gram matrix of the inputs of each kernel, fan_in^2
        numbers. SparseGPT needs it; Wanda and DSnoT do not.
      where: ``where(path, leaf) -> bool``; False skips a kernel.
      **kwargs: passed to ``apply_fn`` unchanged.

    Returns:
      For each kernel path, the ``count`` of samples and float32 statistics of each
      input: ``mean``, ``variance``, ``norm``, and ``gram`` or None.

    Raises:
      ValueError: if ``variables`` hold no arrays, there are no batches, no kernel
        multiplies anything, or batches use different kernels.
      TypeError: if ``batches`` is a single array.

    Note:
      All patches of a convolution are in memory at once: one batch of its inputs times
      the size of its window. Use small batches.

    Examples:
      >>> import flax.linen as nn
      >>> import jax, jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> x = jnp.array([[3.0, 0.0], [4.0, 1.0]])
      >>> variables = model.init(jax.random.key(0), x)
      >>> calibration = so.calibrate(model.apply, variables, [x, x])
      >>> calibration
      Calibration(samples={'layers_0/kernel': 4, 'layers_2/kernel': 4}, undecided={})
      >>> print(calibration["layers_0/kernel"].gram)
      [[50.  8.]
       [ 8.  2.]]
    """
    array_leaves(variables, "variables", numbers=True)
    if isinstance(batches, jax.Array | np.ndarray):
        raise TypeError(
            "batches must be an iterable of batches, got an array of shape "
            f"{batches.shape}: pass [array] for a single batch"
        )
    collector = _Collector(
        functools.partial(_apply, apply_fn, kwargs), candidates(variables, where), gram
    )
    total: dict[str, Inputs] | None = None
    for batch in batches:
        args = batch if isinstance(batch, tuple) else (batch,)
        if total is None:
            total = collector.nothing(variables, args)
        total = collector.add(total, variables, args)
    if total is None:
        raise ValueError("batches must hold at least one batch, got none")
    order = [layout.path for layout in collector.layouts if layout]
    return Calibration(
        {path: total[path] for path in order if path in total},
        {path: collector.reasons[path] for path in order if path not in total},
    )


def _apply(
    apply_fn: Callable[..., Any],
    kwargs: Mapping[str, Any],
    variables: Any,
    args: tuple[Any, ...],
) -> Any:
    return apply_fn(variables, *args, **kwargs)


class _Collector:
    """An accumulator of statistics: one compiled program for batches of equal shapes.

    Attributes:
      layouts: one for each leaf of the variables, None if it is not a kernel.
      reasons: kernel -> why it has no statistics. Set by tracing, and the same for
        batches of any shape.
    """

    def __init__(
        self,
        evaluate: Callable[[Any, tuple[Any, ...]], Any],
        layouts: list[Layout | None],
        with_gram: bool,
    ):
        self.layouts = layouts
        self.reasons: dict[str, str] = {}
        self.add = jax.jit(self._add)
        self._evaluate = evaluate
        self._with_gram = with_gram

    def nothing(self, variables: Any, args: tuple[Any, ...]) -> dict[str, Inputs]:
        """Return empty statistics for the kernels that a batch uses."""
        shapes = jax.eval_shape(self._collect, variables, args)
        if not shapes:
            listed = "; ".join(f"{path}: {why}" for path, why in self.reasons.items())
            raise ValueError(
                f"no kernel multiplies inputs that can all be seen ({listed})"
            )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def _collect(self, variables: Any, args: tuple[Any, ...]) -> dict[str, Inputs]:
        jaxpr = jax.make_jaxpr(self._evaluate)(variables, args)
        values = jax.tree.leaves((variables, args))
        layouts = [*self.layouts, *[None] * (len(values) - len(self.layouts))]
        computed = [
            Computed(
                value,
                kernels=frozenset([layout.path] if layout else ()),
                is_data=index >= len(self.layouts),
            )
            for index, (value, layout) in enumerate(zip(values, layouts, strict=True))
        ]
        reader = InputReader(self._with_gram)
        found = reader.read(jaxpr, computed, layouts)
        for layout in filter(None, layouts):
            if layout.path not in found:
                unused = "not used by apply_fn"
                self.reasons[layout.path] = reader.trouble.get(layout.path, unused)
        return found

    def _add(
        self, total: dict[str, Inputs], variables: Any, args: tuple[Any, ...]
    ) -> dict[str, Inputs]:
        found = self._collect(variables, args)
        if found.keys() != total.keys():
            raise ValueError(
                "every batch must use the same kernels, got "
                f"{', '.join(found)} after {', '.join(total)}"
            )
        return {path: _sum(inputs, found[path]) for path, inputs in total.items()}


def _sum(a: Inputs, b: Inputs) -> Inputs:
    moments = add_moments(a.moments, b.moments)
    return Inputs(moments=moments, shape=b.shape, axes=b.axes, groups=b.groups)
