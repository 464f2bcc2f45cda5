"""The folder of a step while it is written: named when all of it is on the disk."""

import asyncio
from typing import Any

from sparseopt_jax.arguments.requirements import needed_by
from sparseopt_jax.files.flush import flush_folder, flush_tree

with needed_by("sparseopt_jax.checkpoint", "orbax-checkpoint"):
    import orbax.checkpoint as ocp
    from etils import epath

_Renamed = ocp.path.atomicity.AtomicRenameTemporaryPath
_Marked = ocp.path.atomicity.CommitFileTemporaryPath


class FlushedPath(_Renamed):
    """Orbax's folder that is renamed when it is complete, flushed before and after.

    Of what Orbax writes, the arrays alone are flushed when they are written: not the
    record, nor the tree's structure, nor what is said of the step, without which the
    arrays cannot be read, nor the new name.

    Args:
      temporary_path: where it is written.
      final_path: where it is to be.
      checkpoint_metadata_store: what Orbax keeps about the step, to be written last.
      **options: Orbax's.

    Note:
      Process 0 flushes for all. What other hosts write to a network file system is
      there when they have closed it, as NFS has it.
    """

    def __init__(
        self,
        temporary_path: epath.Path,
        final_path: epath.Path,
        *,
        checkpoint_metadata_store: Any = None,
        **options: Any,
    ):
        super().__init__(
            temporary_path,
            final_path,
            checkpoint_metadata_store=checkpoint_metadata_store,
            **options,
        )
        # Writes, as the class above does, what is written last, and renames nothing.
        self._marked = _Marked(
            temporary_path,
            temporary_path,
            checkpoint_metadata_store=checkpoint_metadata_store,
        )

    async def finalize(self) -> None:
        """Writes the rest, flushes everything, renames it, and flushes the name."""
        await self._marked.finalize()
        await asyncio.to_thread(self._name)

    def _name(self) -> None:
        written, final = self.get(), self.get_final()
        # The record and the arrays have such folders too, within the step's, which
        # flushes them all.
        is_step = ocp.path.atomicity.TMP_DIR_SUFFIX not in final.parent.name
        if is_step:
            flush_tree(written)
        written.rename(final)
        if is_step:
            flush_folder(final.parent)
