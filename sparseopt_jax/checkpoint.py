"""Checkpoints: a run that is killed goes on where its last complete one was taken.

Orbax writes them, in the background and under a temporary name that it changes last, so
that a save cut off is no checkpoint. Beside the arrays lies a record of what they are:
shapes, types, active weights, the topology, and a checksum of every array. It is
compared before anything is read, and what is read is compared with it.
"""

import os
from typing import Any

import jax

from sparseopt_jax import checkpoint_record as records
from sparseopt_jax import stored_leaves
from sparseopt_jax.preemption import Stop, stop_on_sigterm
from sparseopt_jax.requirements import needed_by
from sparseopt_jax.straight_through import AnyTopology

with needed_by("sparseopt_jax.checkpoint", "orbax-checkpoint"):
    import orbax.checkpoint as ocp
    from etils import epath

__all__ = ["Checkpoints", "Stop", "stop_on_sigterm"]

_TEMPORARY = ".orbax-checkpoint-tmp"
# Steps are renamed before they are deleted: a deletion cut off leaves no half a step.
_DELETED = ".deleted"


class Checkpoints:
    """The checkpoints of one run, in a directory of their own.

    Saves are asynchronous: ``save`` returns when the arrays are off the device, and the
    state may be donated at once. Leaving the ``with`` block waits for the last one.
    With several processes every one of them makes the same calls, on one file system.

    A checkpoint is complete or it is none: what a killed process leaves behind has a
    temporary name, is never taken for the latest step, and is removed at the next
    start. What happens to the files later, a power failure included, is noticed by
    ``restore``, which then loads nothing.

    Args:
      directory: where the steps lie, made if needed; may hold nothing else.
      topology: the topology of the run, kept with every step and compared by
        ``restore``; None compares only the masks. One whose numbers of active weights
        change by design has to be given.
      max_to_keep: how many of the latest steps are kept; None keeps all.

    Raises:
      ValueError: if the directory holds something else.

    Examples:
      >>> import jax.numpy as jnp, tempfile
      >>> import sparseopt_jax as so
      >>> from sparseopt_jax.checkpoint import Checkpoints
      >>> topology = so.rigl(0.75, every=100, stop=1000)
      >>> state = so.linen.TrainState.create(
      ...     apply_fn=None,
      ...     params={"kernel": jnp.ones((4, 8))},
      ...     tx=so.sparse_sgd(0.1, topology),
      ... )
      >>> directory = tempfile.mkdtemp()
      >>> with Checkpoints(directory, topology=topology) as checkpoints:
      ...     checkpoints.restore(state)  # nothing there yet
      ...     new = state.apply_gradients(grads=state.params)
      ...     checkpoints.save(1, new, data={"epoch": 0, "index": 32})
      True
      >>> with Checkpoints(directory, topology=topology) as checkpoints:
      ...     state, data = checkpoints.restore(state)
      >>> int(state.step), data
      (1, {'epoch': 0, 'index': 32})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        topology: AnyTopology | None = None,
        max_to_keep: int | None = 3,
    ):
        directory = os.fspath(directory)
        if "://" not in directory:
            directory = os.path.abspath(directory)
        self._directory = epath.Path(directory)
        self._topology = (
            None if topology is None else records.describe_topology(topology)
        )
        self._check_directory()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep,
                todelete_subdir=_DELETED,
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are there, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The step that ``restore`` takes; None if there is none."""
        return max(self.steps, default=None)

    def save(self, step: int, state: Any, data: Any = None) -> bool:
        """Starts to save a step, after the one before has been written.

        Args:
          step: how many steps the run has taken.
          state: any pytree of arrays, typed PRNG keys and numbers: a ``TrainState``,
            params and optimizer state, an ``nnx.State``. Under ``pmap`` one replica
            of it, so that it fits any number of devices.
          data: where the input stands, as JSON has it: epoch, index, seed. The same on
            every process.

        Returns:
          False if the step is there already, and nothing was done.

        Raises:
          ValueError: if later steps are there, ``data`` is not JSON, or a leaf of the
            state is no array.
        """
        latest = self.latest_step
        if latest is not None and step == latest:
            return False
        if latest is not None and step < latest:
            raise ValueError(
                f"step {step} is before step {latest}, which {self._directory} holds "
                "already; delete the later steps, or save to another directory"
            )
        leaves = stored_leaves.flatten(state)
        stored = stored_leaves.to_store(leaves)
        record = records.make(state, leaves, stored, self._topology, data)
        self.wait()
        return self._manager.save(
            step,
            args=ocp.args.Composite(
                record=ocp.args.JsonSave(record),
                state=ocp.args.StandardSave(stored_leaves.nest(stored)),
            ),
            force=True,
        )

    def restore(
        self, state: Any, *, step: int | None = None, check_topology: bool = True
    ) -> tuple[Any, Any] | None:
        """Loads a step, the latest unless told otherwise.

        Args:
          state: what a new run would start from. Its structure, shapes, types and
            shardings are those of the result, so that another number of devices or
            another mesh is told by it alone. Leaves may be ``jax.ShapeDtypeStruct``;
            the active weights of masks are then not compared. What is no array, such
            as ``tx`` and ``apply_fn``, is taken from it.
          step: one of ``steps``.
          check_topology: False allows another topology than that of the checkpoint,
            say a later ``stop``; the masks must fit in any case.

        Returns:
          The state and the data position, or None if there is no step yet.

        Raises:
          ValueError: if the checkpoint was made by another configuration, with every
            difference; if it is damaged, or none of ours. Nothing is loaded then.
        """
        step = self.latest_step if step is None else step
        if step is None:
            return None
        if step not in self.steps:
            raise ValueError(
                f"{self._directory} holds no step {step}; there are {self.steps}"
            )
        record = self._read_record(step)
        leaves = stored_leaves.flatten(state)
        topology = self._topology if check_topology else None
        differences = records.differences(record, state, leaves, topology)
        if differences:
            raise ValueError(
                f"the checkpoint {self._directory / str(step)} is of another run:\n"
                f"{records.listed(differences, separator=chr(10))}\nStart with its "
                "configuration, or give this run a directory of its own; "
                "restore(..., check_topology=False) allows another topology where the "
                "masks fit."
            )
        loaded = self._read_state(step, leaves, record["checksums"])
        structure = jax.tree.structure(state)
        return structure.unflatten(loaded), record["data"]

    def wait(self) -> None:
        """Waits until the save under way is complete.

        Raises:
          Exception: whatever kept it from being written.
        """
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            deleted = self._directory / _DELETED
            if deleted.exists():
                deleted.rmtree()

    def close(self) -> None:
        """Waits, and frees what the checkpoints hold. ``with`` does it by itself."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _check_directory(self) -> None:
        if not self._directory.exists():
            return
        if not self._directory.is_dir():
            raise ValueError(f"{self._directory} is no directory")
        names = [path.name for path in self._directory.iterdir()]
        steps = [name for name in names if name.isdigit()]
        others = [
            name
            for name in names
            if name not in steps and _TEMPORARY not in name and not name.startswith(".")
        ]
        if others:
            raise ValueError(
                f"{self._directory} holds {', '.join(map(repr, sorted(others)))}, "
                "which is no checkpoint; give the checkpoints a directory of their own"
            )
        for name in steps:
            if not (self._directory / name / "record").exists():
                raise ValueError(
                    f"{self._directory / name} is no checkpoint of this library, or "
                    "an incomplete copy of one: it holds no record; delete it, or give "
                    "the checkpoints a directory of their own"
                )

    def _read_record(self, step: int) -> dict[str, Any]:
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
            )
            return records.checked(restored["record"])
        # What a damaged file makes Orbax raise is of no one kind.
        except Exception as error:
            raise self._damaged(step, str(error)) from error

    def _read_state(
        self, step: int, leaves: dict[str, Any], checksums: dict[str, int]
    ) -> list[Any]:
        targets = stored_leaves.targets(leaves)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(stored_leaves.nest(targets))
                ),
            )
            by_path = stored_leaves.flatten(restored["state"])
            stored = {path: by_path[path] for path in targets}
            found = records.checksums(stored)
        except Exception as error:
            raise self._damaged(step, str(error)) from error
        wrong = [path for path in found if found[path] != checksums[path]]
        if wrong:
            what = f"It does not hold what was saved at {records.listed(wrong)}."
            raise self._damaged(step, what)
        return [stored_leaves.like(x, stored.get(path)) for path, x in leaves.items()]

    def _damaged(self, step: int, why: str) -> ValueError:
        earlier = [str(other) for other in self.steps if other < step]
        if earlier:
            then = f"to go on from step {earlier[-1]} (there are {', '.join(earlier)})"
        else:
            then = "to start anew (there is no earlier step)"
        return ValueError(
            f"the checkpoint {self._directory / str(step)} is damaged, and nothing was "
            f"loaded; delete that directory {then}. {why}"
        )
