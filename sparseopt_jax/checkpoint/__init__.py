"""Checkpoints of sparse runs: interrupted runs resume bit for bit.

``Checkpoints`` saves and restores a run; ``stop_on_sigterm`` lets it save and exit
before it is killed. Requires ``orbax-checkpoint``.
"""

from sparseopt_jax.checkpoint.checkpoints import Checkpoints
from sparseopt_jax.checkpoint.preemption import Stop, stop_on_sigterm

__all__ = ["Checkpoints", "Stop", "stop_on_sigterm"]
