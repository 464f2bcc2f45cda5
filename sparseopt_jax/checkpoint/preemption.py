"""Preemption: a flag for runs to save and exit when a scheduler asks them to."""

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
    """A flag that is set when a run is asked to stop; made by ``stop_on_sigterm``."""

    def __init__(self) -> None:
        self._received = False

    def reached(self, step: int) -> bool:
        """Tell whether to save and exit after this step.

        Args:
          step: number of steps that the run has taken. If there are several processes,
            all must ask after every step, and all stop after the same one.

        Returns:
          True from the signal on; with several processes, at the agreed step.
        """
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received


def stop_on_sigterm() -> Stop:
    """Turn SIGTERM, which schedulers send before they kill a run, into a flag.

    A second signal ends the process at once. If ``jax.distributed`` is initialized, JAX
    itself listens for the signal, and lets all processes stop at the same step.

    Returns:
      The flag to check after every step.

    Raises:
      ValueError: if not called in the main thread.

    Examples:
      >>> import signal
      >>> stop = stop_on_sigterm()
      >>> stop.reached(1)
      False
      >>> signal.raise_signal(signal.SIGTERM)
      >>> stop.reached(2)
      True

      A training program that resumes after preemption::

        stop = so.checkpoint.stop_on_sigterm()
        with so.checkpoint.Checkpoints(directory, topology=topology) as checkpoints:
            state, position = checkpoints.restore(state) or (state, start)
            for step in range(int(state.step) + 1, steps + 1):
                batch, position = next_batch(position)
                state, metrics = train_step(state, batch)
                stopping = stop.reached(step)
                if stopping or step % 1000 == 0:
                    checkpoints.save(step, state, position)
                if stopping:
                    break
    """
    stop = Stop()
    if jax.distributed.is_initialized():
        return stop
    before = signal.getsignal(signal.SIGTERM)

    def receive(*_: Any) -> None:
        stop._received = True
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    try:
        signal.signal(signal.SIGTERM, receive)
    except ValueError:
        raise ValueError(
            "stop_on_sigterm must be called in the main thread, because no other "
            "thread can receive signals"
        ) from None
    return stop
