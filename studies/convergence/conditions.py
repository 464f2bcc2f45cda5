"""The conditions under which ``studies.convergence`` compares corrections."""

from typing import Any, NamedTuple

import numpy as np

import sparseopt_jax as so
from studies.convergence.masks import log_normal, power_law, spread_masks

# Factors of the gradient before SGD: none, the paper's by fan-in, by the measured
# deviations (ours), and by the weights' norms (ours).
ARMS = ("none", "fan_in", "batch_variance", "weight_norm")
# Ours as well, tried where the first ones differ.
MORE_ARMS = (*ARMS, "variance^1/4", "variance^1", "fan_in_then_variance")
LAWS = {"spread": log_normal, "power_law": power_law}


class Condition(NamedTuple):
    """How a network is made sparse and trained.

    Attributes:
      name: its name in tables.
      network: a key of a study's ``networks()``.
      method: "rigl", "set" or "static"; "spread" and "power_law" are static with
        fan-ins that differ between neurons by a log-normal law or a power law, for the
        largest skew of the gradient.
      sparsity: fraction of zeros.
      distribution: how the active weights are distributed over the layers.
      sparse_init: whether weights are drawn by the fan-in of their neuron.
      length: length of the training, relative to the default.
      momentum: momentum of the running statistics of Batch Normalization.
      layers: number of hidden layers, if the network has that option.
      weight_decay: weight decay of the kernels.
      ham: whether HAM's multiplicative step follows SGD's.
      keep_norms: whether the correction preserves the norm of each layer's gradient and
        only changes its direction.
      corrected_growth: whether RigL grows by the gradient times SparseOpt's factors.
      min_fan_in: active weights that every neuron keeps.
      rates: learning rates to try, if not those of the network.
      like: the condition whose learning rates are used; None tunes them.
      arms: the corrections to compare, the first with all others.
    """

    name: str
    network: str = "glyphs"
    method: str = "rigl"
    sparsity: float = 0.95
    distribution: str = "erdos_renyi_kernel"
    sparse_init: bool = False
    length: int = 1
    momentum: float = 0.9
    layers: int = 3
    weight_decay: float = 5e-4
    ham: bool = False
    keep_norms: bool = False
    corrected_growth: bool = False
    min_fan_in: int = 0
    rates: tuple[float, ...] | None = None
    like: str | None = None
    arms: tuple[str, ...] = ARMS

    def every(self, steps: int) -> int:
        """Return the steps between updates of the masks, as in RigL.

        It does not depend on the length of the training.
        """
        return max(1, 3 * steps // self.length // 80)

    def topology(self, steps: int, params: Any, seed: int) -> so.Topology:
        """Return the topology."""
        shared: dict[str, Any] = {
            "distribution": self.distribution,
            "min_fan_in": self.min_fan_in,
        }
        if self.method == "static":
            return so.static(self.sparsity, **shared)
        if self.method in LAWS:
            topology = so.static(self.sparsity, **shared)
            draw, law = np.random.default_rng(seed), LAWS[self.method]
            return so.static(masks=spread_masks(topology, params, draw, law))
        if self.corrected_growth:
            shared["corrected_growth"] = True
        method = {"rigl": so.rigl, "set": so.set_}[self.method]
        stop = max(2, 3 * steps // 4)
        return method(self.sparsity, every=self.every(steps), stop=stop, **shared)


CONDITIONS = (
    Condition("RigL, 95 %", arms=MORE_ARMS),
    Condition("RigL, 90 %", sparsity=0.9),
    Condition("RigL, 97 %", sparsity=0.97),
    Condition("SET, 95 %", method="set"),
    Condition("SET, 90 %", method="set", sparsity=0.9),
    Condition("SET, 97 %", method="set", sparsity=0.97),
    Condition("static, 95 %", method="static"),
    Condition("static, 95 %, fan-ins spread", method="spread", arms=MORE_ARMS),
    Condition("RigL, 95 %, uniform", distribution="uniform"),
    Condition("RigL, 95 %, sparse-aware start", sparse_init=True),
    Condition("RigL, 95 %, no weight decay", weight_decay=0.0),
    Condition("RigL, 95 %, slow statistics", momentum=0.99),
    Condition("RigL, 95 %, six hidden layers", layers=6),
    Condition("RigL, 95 %, norms kept", keep_norms=True),
    Condition("RigL, 95 %, HAM", ham=True),
    Condition("RigL, 95 %, 2 x", length=2, like="RigL, 95 %"),
    Condition("RigL, 95 %, 3 x", length=3, like="RigL, 95 %"),
    Condition("RigL, 95 %, 5 x", length=5, like="RigL, 95 %"),
    Condition("digits, RigL, 95 %", network="digits"),
    Condition("digits, SET, 95 %", network="digits", method="set"),
    Condition("digits, spread, 95 %", network="digits", method="spread"),
)

# Questions that the first ones left open: learning rates beyond those that were tried,
# if the best was the lowest of them; longer runs tuned separately; other masks and
# places.
SHORTER_ARMS = ARMS[:3]
_WIDER = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
FURTHER = (
    Condition("RigL, 97 %", sparsity=0.97, rates=_WIDER, arms=SHORTER_ARMS),
    Condition(
        "RigL, 95 %, uniform",
        distribution="uniform",
        rates=_WIDER,
        arms=(*SHORTER_ARMS, "fan_in_but_head"),
    ),
    Condition(
        "RigL, 95 %, HAM",
        ham=True,
        rates=(0.00625, 0.0125, 0.025, 0.05, 0.1),
        arms=SHORTER_ARMS,
    ),
    *(
        Condition(
            f"RigL, 95 %, {length} x",
            length=length,
            rates=(0.05, 0.1, 0.2, 0.4, 0.8),
            arms=SHORTER_ARMS,
        )
        for length in (2, 3, 5)
    ),
    Condition("static, 95 %, power law", method="power_law", arms=SHORTER_ARMS),
    Condition("RigL, 95 %, growth corrected", corrected_growth=True, arms=ARMS[:2]),
)
