"""Checkpoints of sparse runs: killed runs resume bit for bit.

``Checkpoints`` saves and restores a run, ``stop_on_sigterm`` ends it in good order.
Needs ``orbax-checkpoint``.
"""

from sparseopt_jax.checkpoint.checkpoints import Checkpoints
from sparseopt_jax.checkpoint.preemption import Stop, stop_on_sigterm

__all__ = ["Checkpoints", "Stop", "stop_on_sigterm"]
