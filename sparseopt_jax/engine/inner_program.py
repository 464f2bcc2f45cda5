"""The inner optimizer's step as a program: traced once, its side effects run once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core

from sparseopt_jax.tracing.jaxpr_analysis import (
    acts,
    dependencies,
    is_elementwise,
    leading_to,
    variables,
    zero_outputs,
)
from sparseopt_jax.trees import paths

_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


@dataclasses.dataclass(frozen=True)
class InnerProgram:
    """One step of an optimizer, ``step(*args) -> (updates, state)``.

    If the state that is kept differs from the one that the step returns, the compiler
    would compute the step twice: once for the updates, from a copy of the old state
    that it can no longer overwrite, and once for the state. On CPU this costs three
    times as much as the dense step. Instead, the updates are computed from the state
    that is kept, by running the part of the program that leads from it to them a second
    time. Equations with side effects run only once.

    Attributes:
      jaxpr: the program; its inputs are the arrays among the arguments.
      updates: structure of the updates.
      state: structure of the new state.
    """

    jaxpr: core.ClosedJaxpr
    updates: Any
    state: Any

    @classmethod
    def of(cls, step: Callable[..., tuple[Any, Any]], *args: Any) -> "InnerProgram":
        """Trace a step.

        Args:
          step: returns updates and the new state.
          *args: pytrees. Leaves that are not arrays become part of the program.

        Returns:
          The program, to run with arguments like these.
        """
        leaves, structure = jax.tree.flatten(args)

        def of_arrays(*arrays):
            given = iter(arrays)
            filled = [next(given) if isinstance(x, _ARRAYS) else x for x in leaves]
            return step(*structure.unflatten(filled))

        trace = jax.make_jaxpr(of_arrays, return_shape=True)
        closed, shapes = trace(*_arrays(args))
        return cls(closed, *map(jax.tree.structure, shapes))

    @property
    def _program(self) -> core.Jaxpr:
        return self.jaxpr.jaxpr

    @property
    def _outputs(self) -> tuple[list[Any], list[Any]]:
        """The variables of the updates, and those of the state."""
        size = self.updates.num_leaves
        return list(self._program.outvars[:size]), list(self._program.outvars[size:])

    @property
    def is_repeatable(self) -> bool:
        """Whether the updates do not depend on equations that may run only once."""
        updates, _ = self._outputs
        once = {var for eqn in self._once() for var in eqn.outvars}
        _, needed = leading_to(self._program.eqns, updates, frozenset())
        return not once & needed

    def updates_only(self, *args: Any) -> Any:
        """Compute the updates again without side effects; only if ``is_repeatable``."""
        updates, _ = self._outputs
        found = self._evaluate(_arrays(args), updates, {})
        return self.updates.unflatten(found)

    def run(
        self,
        args: tuple[Any, ...],
        hold: Callable[[Any], Any] = lambda state: state,
        refresh: Callable[[Any], Any] = lambda state: state,
    ) -> tuple[Any, Any]:
        """Run the step and amend its new state, at the cost of one step.

        The values are those of ``updates, state = step(*args); state =
        refresh(hold(state))`` wherever the updates are used.

        Args:
          args: arguments like those that the step was traced with.
          hold: maps the new state to the part of it that is kept; it may change
            anything if the updates are then discarded.
          refresh: maps the result of ``hold`` to the final state; it may change entries
            of weights whose updates are discarded. With an optimizer that mixes weights
            (by a norm, a matrix product), this would affect the updates of other
            weights, so they are computed from the state before ``refresh``.

        Returns:
          The updates and the amended state.
        """
        arrays = _arrays(args)
        updates, states = self._outputs
        used = {var for eqn in self._program.eqns for var in variables(eqn.invars)}
        once = [
            var
            for eqn in self._once()
            for var in eqn.outvars
            if var in used or var in updates
        ]
        raw = core.jaxpr_as_fun(self._with_outputs([*states, *once]))(*arrays)
        raw, results = raw[: len(states)], raw[len(states) :]
        held = hold(self.state.unflatten(raw))
        state = refresh(held)

        kept = set(variables(states))
        seen = state if is_elementwise(self._program, kept) else held
        computed = {var for eqn in self._program.eqns for var in eqn.outvars}
        given = {
            var: value
            for var, value in zip(states, jax.tree.leaves(seen), strict=True)
            if isinstance(var, core.Var) and var in computed
        }
        given |= dict(zip(once, results, strict=True))
        return self.updates.unflatten(self._evaluate(arrays, updates, given)), state

    def frozen(self) -> frozenset[str]:
        """Return the paths of the leaves whose update is zero for any gradient.

        For example, ``optax.set_to_zero`` in ``partition`` has this effect.
        """
        updates, _ = self._outputs
        zeros = zero_outputs(self._program, [False] * len(self._program.invars))
        flags = self.updates.unflatten(zeros[: len(updates)])
        leaves = paths.flatten_with_paths(flags)
        return frozenset(path for path, flag in leaves if flag is True)

    def state_labels(self, args: Any, labels: Any) -> list[int]:
        """Return, for each leaf of the new state, which arguments it depends on.

        Args:
          args: arguments like those that the step was traced with.
          labels: a tree like ``args`` with a set of labels at each leaf, as the bits of
            an integer.
        """
        of_leaves = zip(jax.tree.leaves(args), jax.tree.leaves(labels), strict=True)
        inputs = [label for x, label in of_leaves if isinstance(x, _ARRAYS)]
        return dependencies(self._program, inputs)[self.updates.num_leaves :]

    def _once(self) -> list[core.JaxprEqn]:
        return [eqn for eqn in self._program.eqns if acts(eqn)]

    def _with_outputs(self, outvars: list[Any]) -> core.ClosedJaxpr:
        return core.ClosedJaxpr(
            self._program.replace(outvars=outvars), self.jaxpr.consts
        )

    def _evaluate(
        self, arrays: list[Any], outvars: list[Any], given: dict[Any, Any]
    ) -> list[Any]:
        """Compute variables of the program from the given values of other variables."""
        program = self._program
        eqns, _ = leading_to(program.eqns, outvars, given.keys())

        def not_given(var):
            return core.Var(var.aval) if var in given else var

        renamed = [
            eqn.replace(outvars=[not_given(var) for var in eqn.outvars]) for eqn in eqns
        ]
        program = program.replace(
            constvars=[*program.constvars, *given],
            eqns=renamed,
            outvars=outvars,
        )
        closed = core.ClosedJaxpr(program, [*self.jaxpr.consts, *given.values()])
        return core.jaxpr_as_fun(closed)(*arrays)


def _arrays(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if isinstance(x, _ARRAYS)]
