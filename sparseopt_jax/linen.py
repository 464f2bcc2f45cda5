"""Flax linen: a train state that starts sparse and stays sparse."""

import dataclasses
import inspect
from typing import Any

import jax.numpy as jnp
import optax

from sparseopt_jax.arguments.requirements import needed_by
from sparseopt_jax.masks import environment
from sparseopt_jax.masks.state import find_states
from sparseopt_jax.masks.zero_weights import apply_updates, zero_inactive

with needed_by("sparseopt_jax.linen", "flax"):
    from flax.training import train_state

__all__ = ["TrainState"]


class TrainState(train_state.TrainState):
    """Flax's ``TrainState`` for sparse training.

    It differs in four ways: ``create`` sets the inactive weights to zero;
    ``apply_gradients`` keeps them at zero whatever follows the masks in a chain; all
    its keywords reach ``tx.update``; and the step is an array from the start, so that a
    jitted step compiles once.

    Subclass it to add fields, with or without defaults, in any order. If a class adds a
    field without a default, pass all its fields by keyword, as ``create`` does.

    Attributes:
      batch_stats: running statistics of Batch Normalization, or None.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> state = so.linen.TrainState.create(
      ...     apply_fn=None,
      ...     params={"kernel": jnp.ones((4, 8))},
      ...     tx=so.sparse_sgd(0.1, so.static(0.75)),
      ... )
      >>> state = state.apply_gradients(grads=state.params)
      >>> int(state.step), int((state.params["kernel"] != 0).sum())
      (1, 8)
    """

    batch_stats: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # `batch_stats` has a default, after which Python does not allow positional
        # fields without one.
        known = {field.name for field in dataclasses.fields(TrainState)}
        added = set(inspect.get_annotations(cls)) - known
        if any(not hasattr(cls, name) for name in added):
            kwargs.setdefault("kw_only", True)
        super().__init_subclass__(**kwargs)

    @classmethod
    def create(cls, *, apply_fn, params, tx, **kwargs):
        """Return a state at step 0, with its inactive weights at zero.

        Args:
          apply_fn: usually ``model.apply``.
          params: the dense parameters.
          tx: any optax transformation. If its state holds masks, ``params`` start
            sparse, except where masks apply only to the forward pass.
          **kwargs: further fields, such as ``batch_stats``.

        Returns:
          The state.
        """
        opt_state = tx.init(params)
        if find_states(opt_state):
            params = zero_inactive(params, opt_state)
        return cls(
            step=jnp.zeros([], jnp.int32),
            apply_fn=apply_fn,
            params=params,
            tx=tx,
            opt_state=opt_state,
            **kwargs,
        )

    def apply_gradients(self, *, grads, **kwargs):
        """Take one optimizer step.

        Args:
          grads: gradients, a tree like ``params``.
          **kwargs: extra arguments of ``tx.update``. Those that are named like a field
            of the state also replace it. If ``batch_stats`` is not passed,
            transformations that read it receive the state's.

        Returns:
          The next state.
        """
        values = {} if self.batch_stats is None else {"batch_stats": self.batch_stats}
        tx = optax.with_extra_args_support(self.tx)
        updates, opt_state = environment.run(
            tx,
            environment.named_by(tx),
            values,
            grads,
            self.opt_state,
            self.params,
            **kwargs,
        )
        if find_states(opt_state):
            # Exact zeros even if something scales the updates after the masks.
            params = apply_updates(self.params, updates, opt_state)
        else:
            params = optax.apply_updates(self.params, updates)
        fields = {field.name for field in dataclasses.fields(self)}
        return self.replace(
            step=self.step + 1,
            params=params,
            opt_state=opt_state,
            **{name: value for name, value in kwargs.items() if name in fields},
        )
