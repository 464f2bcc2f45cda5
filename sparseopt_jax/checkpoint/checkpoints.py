"""Checkpoints: an interrupted run resumes from its last complete checkpoint.

Orbax writes them in the background, under a temporary name. They are renamed last, when
everything is on the disk, so that an interrupted save is not taken for a checkpoint. A
record beside the arrays holds their shapes, dtypes, active weights, the topology, and a
checksum of every array. It is compared with the run before any array is read, and the
arrays are then compared with it.
"""

import os
import warnings
import weakref
from typing import Any

import jax
import optax

from sparseopt_jax.arguments.checks import integer
from sparseopt_jax.arguments.requirements import needed_by
from sparseopt_jax.arrays import process_arrays
from sparseopt_jax.checkpoint import agreement, forgotten, stored_leaves
from sparseopt_jax.checkpoint import names as checkpoint_names
from sparseopt_jax.checkpoint import record as records
from sparseopt_jax.checkpoint.files import DELETED, CheckpointFolder
from sparseopt_jax.checkpoint.flushed_path import FlushedPath
from sparseopt_jax.checkpoint.lock import WriterLock
from sparseopt_jax.checkpoint.optimizer_record import describe_optimizer
from sparseopt_jax.files.flush import flush_folder, make_folder
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees import paths

with needed_by("sparseopt_jax.checkpoint", "orbax-checkpoint"):
    import orbax.checkpoint as ocp
    from etils import epath

_SAME_CALLS = (
    "All processes of a run must save the same step of the same state with the same "
    "data: build model, optimizer and topology from one configuration, and pass the "
    "data position of the whole run"
)
_SAME_COPIES = (
    "Copies of one array differ between processes: start all of them from one seed or "
    "one restored checkpoint, average gradients over all devices, and save replicated "
    "arrays; nothing was saved"
)


class Checkpoints:
    """The checkpoints of one run, in a directory of their own.

    Saves are asynchronous: ``save`` returns once the arrays are off the device, and the
    state may be donated at once. Leaving the ``with`` block waits for the last save. If
    there are several processes, all must make the same calls, on one file system.

    A checkpoint is complete or does not exist: an interrupted save has a temporary
    name, is never taken for the latest step, and is removed by the next ``save``. The
    files of a step are on the disk before it gets its name, and the name is on the disk
    before an earlier step is deleted, so that a power failure loses only the step that
    was being saved. If files are damaged later, ``restore`` detects it and loads
    nothing.

    Until its first ``save`` an object only reads: it creates, changes and removes
    nothing, so that an evaluation can follow a run that is still training. From then on
    it holds the directory and keeps other writers out, until it is closed or its
    process ends. Without ``close``, its last save still completes before the process
    ends, and before another object of the process writes.

    Args:
      directory: the directory of the steps, created by the first ``save`` if needed;
        must hold nothing else.
      topology: the topology of the run, saved with every step and compared by
        ``restore``; None compares only the masks. Required if the topology changes the
        numbers of active weights by design.
      optimizer: the transformation of the run, also saved and compared as far as its
        functions can be read. Not needed for a ``TrainState``, which holds it.
      max_to_keep: number of latest steps to keep; None keeps all.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the directory holds anything else or cannot exist, Orbax would read
        its name as a pattern, or ``max_to_keep`` is below 1.

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
        topology: Topology | None = None,
        optimizer: optax.GradientTransformation | None = None,
        max_to_keep: int | None = 3,
    ):
        if topology is not None and not isinstance(topology, Topology):
            raise TypeError(
                "topology must be a Topology, such as so.rigl(...), or None, got "
                f"{topology!r}"
            )
        if optimizer is not None and not isinstance(
            optimizer, optax.GradientTransformation
        ):
            raise TypeError(
                f"optimizer must be an optax transformation, or None, got {optimizer!r}"
            )
        self._directory = epath.Path(checkpoint_names.directory_of(directory))
        self._folder = CheckpointFolder(self._directory)
        self._max_to_keep = (
            None if max_to_keep is None else integer("max_to_keep", max_to_keep, 1)
        )
        self._optimizer = optimizer
        self._topology = (
            None if topology is None else records.describe_topology(topology)
        )
        self._manager: ocp.CheckpointManager | None = None
        self._lock: WriterLock | None = None
        self._finalizer: weakref.finalize | None = None
        self._closed = False
        self._folder.check()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that exist now, ascending, including those of other writers."""
        self._check_open()
        if self._manager is not None:
            return sorted(self._manager.all_steps())
        return self._folder.steps()

    @property
    def latest_step(self) -> int | None:
        """The step that ``restore`` loads by default; None if there is none."""
        return max(self.steps, default=None)

    def save(self, step: int, state: Any, data: Any = None) -> bool:
        """Start to save a step, once the previous one is written.

        Args:
          step: number of steps that the run has taken.
          state: any pytree of arrays, typed PRNG keys and numbers: a ``TrainState``,
            params and optimizer state, an ``nnx.State``. Under ``pmap``, pass one
            replica, which fits any number of devices. If there are several processes,
            arrays may be global, or local to each process and the same in all.
          data: the position in the input data, as JSON: epoch, index, seed. The same in
            every process.

        Returns:
          False if the step already exists and nothing was done.

        Raises:
          TypeError: if ``step`` is not an integer.
          ValueError: if ``step`` is negative or later steps exist, ``data`` is not
            JSON, a leaf of the state cannot be saved, another process writes to the
            directory, or the processes of this run hold different values, with the
            first difference. All processes raise together.
        """
        self._check_open()
        record, leaves = agreement.together(lambda: self._begun(step, state, data))
        agreement.require_same(record, _SAME_CALLS)
        manager = self._writer()
        latest = self.latest_step
        if latest is not None and record["step"] == latest:
            return False
        if latest is not None and record["step"] < latest:
            raise ValueError(
                f"step {step} is before step {latest}, which {self._directory} holds "
                "already; delete the later steps, or save to another directory"
            )
        stored = stored_leaves.to_store(leaves)
        sums = records.sums(state, stored)
        agreement.require_same(sums, _SAME_COPIES)
        agreement.together(self.wait)
        on_disk = {
            checkpoint_names.leaf_on_disk(path): process_arrays.written_once(x)
            for path, x in stored.items()
        }
        return manager.save(
            record["step"],
            args=ocp.args.Composite(
                record=ocp.args.JsonSave(records.finish(record | sums)),
                state=ocp.args.StandardSave(paths.nest(on_disk)),
            ),
            force=True,
        )

    def restore(
        self,
        state: Any,
        *,
        step: int | None = None,
        check_topology: bool = True,
        check_optimizer: bool = True,
    ) -> tuple[Any, Any] | None:
        """Load a step, the latest by default.

        Args:
          state: the state that a new run would start from. The result has its
            structure, shapes, dtypes and shardings: pass a state on other devices or
            another mesh to restore there. Leaves may be ``jax.ShapeDtypeStruct``; the
            active weights of masks are then not compared. Parts that are not arrays,
            such as ``tx`` and ``apply_fn``, are taken from it.
          step: one of ``steps``.
          check_topology: False allows another topology than the checkpoint's, for
            example one with a later ``stop``; the masks must still fit.
          check_optimizer: False allows an optimizer with other parts or other
            hyper-parameters, such as another learning rate; its state must still fit.

        Returns:
          The state and the data position, or None if there is no step yet.

        Raises:
          TypeError: if ``step`` is not an integer.
          OSError: if the checkpoint cannot be read for a reason that does not show
            damage, such as permissions, a file system that is not available or memory.
          ValueError: if the checkpoint has another configuration, with every
            difference, or another version of the format; if it is damaged, holds
            another step than its folder says, or was not written by this library; if
            a sharding of the state does not fit its array, or JAX would convert an
            array of the state to another dtype. Nothing is loaded then.
        """
        agreement.together(self.wait)
        if step is None:
            step = agreement.of_first(self.latest_step)
            if step is None:
                return None
        number = agreement.together(lambda: self._existing(step))
        leaves = stored_leaves.flatten(state)
        record = agreement.together(lambda: self._folder.record(number))
        differences = agreement.together(
            lambda: records.differences(
                record,
                state,
                leaves,
                self._topology if check_topology else None,
                describe_optimizer(state, self._optimizer) if check_optimizer else None,
            )
        )
        agreement.together(lambda: self._check_fits(number, differences.lines))
        agreement.together(lambda: stored_leaves.check_targets(leaves))
        loaded = agreement.together(lambda: self._folder.leaves(number, leaves, record))
        if differences.not_compared:
            warnings.warn(
                f"the checkpoint {self._directory / str(number)} was restored, but "
                "these settings could not be compared with this run's:\n"
                f"{records.listed(differences.not_compared, separator=chr(10))}",
                UserWarning,
                stacklevel=2,
            )
        structure = jax.tree.structure(state)
        return structure.unflatten(loaded), record["data"]

    def wait(self) -> None:
        """Wait until the current save is complete.

        Raises:
          Exception: the error that prevented it.
        """
        self._check_open()
        if self._manager is None:
            return
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            deleted = self._directory / DELETED
            if deleted.exists():
                if self._has_renames:
                    # A step with half of its files must not get its old name back.
                    flush_folder(self._directory)
                deleted.rmtree()

    def close(self) -> None:
        """Wait for the last save, and free all resources. ``with`` does this too."""
        if self._closed:
            return
        try:
            self.wait()
        finally:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer.detach()
            if self._manager is not None:
                forgotten.discard(self._manager)
                self._manager.close()
            if self._lock is not None:
                self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(
                f"the checkpoints in {self._directory} are closed; make a new "
                "Checkpoints, or call this inside the `with` block"
            )

    def _begun(self, step: Any, state: Any, data: Any) -> tuple[dict[str, Any], Any]:
        """Return the part of the record that needs no arrays, and the leaves."""
        number = checkpoint_names.step_of(step)
        leaves = stored_leaves.flatten(state)
        paths.nest(leaves)
        stored_leaves.check(leaves)
        optimizer = describe_optimizer(state, self._optimizer)
        return records.begin(number, leaves, self._topology, optimizer, data), leaves

    def _writer(self) -> ocp.CheckpointManager:
        """Return the manager, which is created on first use and removes leftovers."""
        if self._manager is None:
            agreement.together(self._take)
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._max_to_keep,
                    todelete_subdir=DELETED,
                    cleanup_tmp_directories=True,
                    temporary_path_class=FlushedPath if self._has_renames else None,
                    # Otherwise, if a folder cannot be created, threads that wait for
                    # it keep the process alive for minutes after its end.
                    async_options=ocp.AsyncOptions(
                        create_directories_asynchronously=False
                    ),
                ),
            )
            release = (lambda: None) if self._lock is None else self._lock.release
            self._finalizer = weakref.finalize(
                self, forgotten.finish, self._manager, release
            )
            self._finalizer.atexit = False
            forgotten.finish_at_exit(self._manager)
        return self._manager

    def _take(self) -> None:
        """Lock the directory; process 0 does it for all processes of the run."""
        forgotten.wait_for_all()
        if jax.process_index() == 0 and self._has_renames and self._lock is None:
            make_folder(self._directory)
            self._lock = WriterLock(self._directory)

    @property
    def _has_renames(self) -> bool:
        """Whether this is a file system; a bucket has neither renames nor locks."""
        return "://" not in str(self._directory)

    def _existing(self, step: Any) -> int:
        number = checkpoint_names.step_of(step)
        if number not in self.steps:
            raise ValueError(
                f"{self._directory} holds no step {number}; there are {self.steps}"
            )
        return number

    def _check_fits(self, step: int, differences: list[str]) -> None:
        if not differences:
            return
        advice = [
            f"restore(..., check_{what}=False) allows another {what} if {fits}."
            for what, fits in (
                ("topology", "the masks fit"),
                ("optimizer", "its state fits"),
            )
            if any(line.startswith(what) for line in differences)
        ]
        raise ValueError(
            f"the checkpoint {self._directory / str(step)} belongs to another run:\n"
            f"{records.listed(differences, separator=chr(10))}\n"
            + " ".join(
                [
                    "Start with its configuration, or give this run another directory.",
                    *advice,
                ]
            )
        )
