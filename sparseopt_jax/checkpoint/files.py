"""The folder of a run's checkpoints, read without changing anything in it."""

import json
import re
from typing import Any

from sparseopt_jax.arguments.requirements import needed_by
from sparseopt_jax.arrays import process_arrays
from sparseopt_jax.checkpoint import names as checkpoint_names
from sparseopt_jax.checkpoint import record as records
from sparseopt_jax.checkpoint import stored_leaves
from sparseopt_jax.trees import paths

with needed_by("sparseopt_jax.checkpoint", "orbax-checkpoint"):
    import orbax.checkpoint as ocp
    from etils import epath

# Part of the names of steps that are being written.
TEMPORARY = ".orbax-checkpoint-tmp"
# Steps are renamed before they are deleted, so that an interrupted deletion does not
# leave an incomplete step.
DELETED = ".deleted"

# Begins the errors of the library that reads the arrays if the files do not hold what
# they should. Other errors, such as RESOURCE_EXHAUSTED, PERMISSION_DENIED or
# UNAVAILABLE, say nothing about the files.
_WRONG_DATA = re.compile(
    "(DATA_LOSS|NOT_FOUND|OUT_OF_RANGE|FAILED_PRECONDITION|INVALID_ARGUMENT):"
    "|Error (opening|reading|decoding) "
)


class CheckpointFolder:
    """A folder of steps, each with its record and its arrays.

    Args:
      directory: the directory of the steps; need not exist.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory

    def names(self) -> list[str]:
        """Return the names of all entries; none if the directory does not exist."""
        try:
            return [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []

    def steps(self) -> list[int]:
        """Return the complete steps, ascending."""
        return sorted(int(name) for name in self.names() if self._is_whole(name))

    def _is_whole(self, name: str) -> bool:
        if not checkpoint_names.is_step(name):
            return False
        # File systems rename a step when it is complete; buckets mark it.
        return "://" not in str(self._directory) or ocp.utils.is_checkpoint_finalized(
            self._directory / name
        )

    def check(self) -> None:
        """Raise ValueError if the directory holds anything but steps."""
        names = self.names()
        steps = [name for name in names if checkpoint_names.is_step(name)]
        others = [
            name
            for name in names
            if name not in steps and TEMPORARY not in name and not name.startswith(".")
        ]
        if others:
            raise ValueError(
                f"{self._directory} holds {', '.join(map(repr, sorted(others)))}, "
                "which is not a checkpoint; give the checkpoints a separate directory"
            )
        for name in steps:
            folder = self._directory / name
            try:
                parts = [path.name for path in folder.iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                parts = []
            # Another process may have just deleted the step.
            if "record" not in parts and folder.exists():
                raise ValueError(
                    f"{folder} is not a checkpoint of this library, or an incomplete "
                    "copy of one: it holds no record; delete it, or give the "
                    "checkpoints a separate directory"
                )

    def _read(self, step: int, **args: Any) -> Any:
        # Not with a manager, because only writers may create one.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(
                self._directory / str(step), args=ocp.args.Composite(**args)
            )

    def record(self, step: int) -> dict[str, Any]:
        """Return the record of a step.

        Raises:
          OSError: if it cannot be read for a reason that does not show damage.
          ValueError: if it is damaged, of another step, or of a version that this one
            cannot read.
        """
        try:
            restored = self._read(step, record=ocp.args.JsonRestore())
        except Exception as error:
            raise self._unread(step, error) from error
        try:
            record = records.checked(restored["record"])
        except (TypeError, ValueError) as error:
            raise self._damaged(step, str(error)) from error
        folder = self._directory / str(step)
        try:
            records.check_version(record)
        except ValueError as error:
            raise ValueError(f"{folder} cannot be read: {error}") from None
        if record.get("step", step) != step:
            raise ValueError(
                f"{folder} holds step {record['step']} and has been renamed or copied: "
                "give it that number again, or delete it"
            )
        return record

    def leaves(
        self, step: int, leaves: dict[str, Any], record: dict[str, Any]
    ) -> list[Any]:
        """Return the leaves of a state from a step, in the state's order.

        Args:
          step: number of the step.
          leaves: the leaves of the state by path.
          record: the result of ``record``.

        Raises:
          OSError: if they cannot be read for a reason that does not show damage.
          ValueError: if they differ from the arrays that were saved.
        """
        targets = {
            path: process_arrays.on_every_process(target)
            for path, target in stored_leaves.targets(leaves, record["leaves"]).items()
        }
        named = checkpoint_names.leaf_on_disk
        on_disk = {named(path): target for path, target in targets.items()}
        try:
            restored = self._read(
                step, state=ocp.args.StandardRestore(paths.nest(on_disk))
            )
            by_name = stored_leaves.flatten(restored["state"])
            stored = {path: by_name[named(path)] for path in targets}
            wrong = records.changed_arrays(record, stored)
        except Exception as error:
            raise self._unread(step, error) from error
        if wrong:
            what = f"It does not hold the saved values of {records.listed(wrong)}."
            raise self._damaged(step, what)
        return [
            process_arrays.placed(
                leaf, stored_leaves.like(path, leaf, stored.get(path))
            )
            for path, leaf in leaves.items()
        ]

    def _unread(self, step: int, error: Exception) -> Exception:
        """Return the error to raise for a step that could not be read."""
        if _shows_damage(error):
            return self._damaged(step, str(error))
        return self._deleted(step) or OSError(
            f"the checkpoint {self._directory / str(step)} could not be read, and "
            f"nothing was loaded; its files may be intact: {type(error).__name__}: "
            f"{error}"
        )

    def _damaged(self, step: int, why: str) -> ValueError:
        earlier = [str(other) for other in self.steps() if other < step]
        if earlier:
            then = f"to resume from step {earlier[-1]} (there are {', '.join(earlier)})"
        else:
            then = "to start from scratch (there is no earlier step)"
        return self._deleted(step) or ValueError(
            f"the checkpoint {self._directory / str(step)} is damaged, and nothing was "
            f"loaded; delete that directory {then}. {why}"
        )

    def _deleted(self, step: int) -> ValueError | None:
        if str(step) in self.names():
            return None
        return ValueError(
            f"step {step} was deleted while it was being read: another process "
            f"writes to {self._directory} and deletes old steps; there are "
            f"{self.steps()} now: call restore again"
        )


def _shows_damage(error: Exception) -> bool:
    """Tell whether files are missing or hold something else than was written."""
    if isinstance(error, FileNotFoundError | json.JSONDecodeError | UnicodeError):
        return True
    if isinstance(error, KeyError):  # a part of the tree's structure is missing
        return True
    return isinstance(error, ValueError | IndexError) and bool(
        _WRONG_DATA.match(str(error))
    )
