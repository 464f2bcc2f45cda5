"""The product of one trained layer, dense, in sparse formats and by block.

    python -m benchmarks.sparse_products

A layer of 1,024 inputs and neurons, for inference: a batch times the kernel, dense by
XLA, in the formats of ``jax.experimental.sparse``, by SciPy on CPU, and by active
blocks only. On one core, in processor time.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import scipy.sparse
from jax.experimental import sparse

import sparseopt_jax as so
from reporting import harness

SPARSITIES, BATCHES, WIDTH, BLOCK = (0.8, 0.9, 0.95, 0.99), (1, 16, 256), 1024, 64
DENSE = "dense, XLA"


def products(sparsity: float, width: int, block: int) -> dict[str, Callable[..., Any]]:
    """Return functions, by name, that multiply a batch with a kernel of a sparsity."""
    draw = np.random.default_rng(0)
    kernel = draw.standard_normal((width, width), np.float32)
    kernel[draw.random(kernel.shape) < sparsity] = 0.0
    neurons = scipy.sparse.csr_array(kernel.T)
    formats = {
        "BCSR": sparse.BCSR.from_scipy_sparse(neurons),
        "BCOO": sparse.BCOO.from_scipy_sparse(neurons),
    }
    params = {"kernel": jax.numpy.asarray(kernel)}
    blocks = so.Block((block, block))
    tx = so.sparsify(optax.sgd(0.1), so.static(sparsity, structure=blocks))
    compact, _ = so.compact_params(params, tx.init(params))
    by_block = so.sparse_apply(lambda params, x: x @ params["kernel"], by="block")
    dense, multiply = jax.jit(lambda w, x: x @ w), jax.jit(lambda w, x: (w @ x.T).T)
    return {
        DENSE: functools.partial(dense, params["kernel"]),
        "SciPy's CSR": lambda x: (neurons @ np.asarray(x).T).T,
        **{name: functools.partial(multiply, w) for name, w in formats.items()},
        f"blocks of {block}": functools.partial(jax.jit(by_block), compact),
    }


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    harness.use_cores(1)
    report = harness.Report("benchmarks.sparse_products", options)
    width, block = (64, 16) if options.quick else (WIDTH, BLOCK)
    for sparsity in SPARSITIES[:1] if options.quick else SPARSITIES:
        found = products(sparsity, width, block)
        for batch in BATCHES:
            x = np.random.default_rng(1).standard_normal((batch, width), np.float32)
            x, steps = jax.numpy.asarray(x), max(1, 64 // batch)

            def run(multiply, x=x, steps=steps):
                return [jax.block_until_ready(multiply(x)) for _ in range(steps)]

            candidates = [
                harness.Candidate(name, functools.partial(run, multiply), steps)
                for name, multiply in found.items()
            ]
            timings = harness.measure(
                candidates, options.rounds_or(15), clock=time.process_time
            )
            title = f"a batch of {batch} at {sparsity:g}"
            report.table(title, timings, DENSE, batch=batch, width=width)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
