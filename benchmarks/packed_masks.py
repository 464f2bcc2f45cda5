"""Masks of one bit per weight: the cost of a step, and their memory.

    python -m benchmarks.packed_masks

The optimizer's step on the parameters of ResNet-50, without an update of the masks,
with masks of one byte and of one bit per weight.
"""

import functools
import itertools
from typing import Any

import jax
import optax

import sparseopt_jax as so
from benchmarks import steps
from reporting import harness


def mask_bytes(opt_state: so.SparseState) -> int:
    """Count the bytes of the masks as the state stores them."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(opt_state.masks))


def main(options: harness.Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.packed_masks", options)
    shapes: Any = steps.TINY if options.quick else steps.resnet_shapes()
    params = steps.random_arrays(shapes, seed=0)
    grads = steps.random_arrays(shapes, seed=1)
    sgd = optax.sgd(1e-3, momentum=0.9)
    topologies = {
        "static": so.static(steps.SPARSITY),
        "RigL": so.rigl(steps.SPARSITY, **steps.NEVER_DUE),
    }
    candidates, taken = [], {}
    for name, topology in topologies.items():
        for words, packed in (("bytes", False), ("bits", True)):
            tx = so.sparsify(sgd, topology, packed=packed)
            carry = steps.start(tx, params)
            taken[name, packed] = mask_bytes(carry[0])
            step = functools.partial(steps.optimizer_step, tx)
            run = steps.looping(step, carry, itertools.repeat((grads,)))
            candidates.append(harness.Candidate(f"{name}, {words}", run))
    timings = harness.measure(candidates, options.rounds_or(30))
    report.table("sgd: a step without a change, in place", timings, "static, bytes")
    for name in topologies:
        ratio = timings[f"{name}, bits"].ratio(timings[f"{name}, bytes"]).median
        report.claim(f"{name}: bits / bytes, time of a step", ratio)
        report.claim(f"{name}: masks in bytes", taken[name, False])
        report.claim(f"{name}: masks in bits, bytes taken", taken[name, True])
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__)
