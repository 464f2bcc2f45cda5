"""The folder of a run's checkpoints, as a reader sees it: nothing in it is changed."""

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

# Part of the names of what is being written.
TEMPORARY = ".orbax-checkpoint-tmp"
# Steps are renamed before they are deleted: a deletion cut off leaves no half a step.
DELETED = ".deleted"


class CheckpointFolder:
    """Steps, each with its record and its arrays.

    Args:
      directory: where they lie; need not exist.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory

    def names(self) -> list[str]:
        """What lies there; nothing if it does not exist."""
        try:
            return [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []

    def steps(self) -> list[int]:
        """The complete steps, ascending."""
        return sorted(int(name) for name in self.names() if self._is_whole(name))

    def _is_whole(self, name: str) -> bool:
        if not checkpoint_names.is_step(name):
            return False
        # File systems rename a step when it is complete; buckets mark it.
        return "://" not in str(self._directory) or ocp.utils.is_checkpoint_finalized(
            self._directory / name
        )

    def check(self) -> None:
        """Raises ValueError if something else than steps lies there."""
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
                "which is no checkpoint; give the checkpoints a directory of their own"
            )
        for name in steps:
            folder = self._directory / name
            # One that another process has just deleted is not there any more.
            if not (folder / "record").exists() and folder.exists():
                raise ValueError(
                    f"{folder} is no checkpoint of this library, or an incomplete copy "
                    "of one: it holds no record; delete it, or give the checkpoints a "
                    "directory of their own"
                )

    def _read(self, step: int, **args: Any) -> Any:
        # Not by the manager: it would have to be made, and making one is for writers.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(
                self._directory / str(step), args=ocp.args.Composite(**args)
            )

    def record(self, step: int) -> dict[str, Any]:
        """The record of a step.

        Raises:
          ValueError: if it is damaged, of another step or of a later version.
        """
        try:
            restored = self._read(step, record=ocp.args.JsonRestore())
            record = records.checked(restored["record"])
        # What a damaged file makes Orbax raise is of no one kind.
        except Exception as error:
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
        """What a step holds for the leaves of a state, in their order.

        Args:
          step: its number.
          leaves: the leaves by path.
          record: as ``record`` gives it.

        Raises:
          ValueError: if what is read is not what was saved.
        """
        saved = record["checksums"]
        targets = {
            path: process_arrays.on_every_process(target)
            for path, target in stored_leaves.targets(leaves).items()
        }
        named = checkpoint_names.leaf_on_disk
        on_disk = {named(path): target for path, target in targets.items()}
        try:
            restored = self._read(
                step, state=ocp.args.StandardRestore(paths.nest(on_disk))
            )
            by_name = stored_leaves.flatten(restored["state"])
            stored = {path: by_name[named(path)] for path in targets}
            found = records.checksums(stored)
        except Exception as error:
            raise self._damaged(step, str(error)) from error
        wrong = [path for path in found if found[path] != saved[path]]
        if wrong:
            what = f"It does not hold what was saved at {records.listed(wrong)}."
            raise self._damaged(step, what)
        return [
            process_arrays.placed(leaf, stored_leaves.like(leaf, stored.get(path)))
            for path, leaf in leaves.items()
        ]

    def _damaged(self, step: int, why: str) -> ValueError:
        if not (self._directory / str(step)).exists():
            return ValueError(
                f"step {step} was deleted while it was read, as another process that "
                f"writes to {self._directory} does with old steps; there are "
                f"{self.steps()} now: call restore again"
            )
        earlier = [str(other) for other in self.steps() if other < step]
        if earlier:
            then = f"to go on from step {earlier[-1]} (there are {', '.join(earlier)})"
        else:
            then = "to start anew (there is no earlier step)"
        return ValueError(
            f"the checkpoint {self._directory / str(step)} is damaged, and nothing was "
            f"loaded; delete that directory {then}. {why}"
        )
