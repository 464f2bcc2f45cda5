"""The temporary folder of a step, which is renamed once all of it is on the disk."""

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

    Orbax itself flushes only the arrays. It flushes neither the record, nor the tree's
    structure and the step's metadata, without which the arrays cannot be read, nor the
    new name.

    Args:
      temporary_path: the path to write to.
      final_path: the path after renaming.
      checkpoint_metadata_store: Orbax's metadata of the step, to be written last.
      **options: Orbax's options.

    Note:
      Process 0 flushes for all processes. Files that other hosts write to a network
      file system are stored once they are closed, as in NFS.
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
        # Writes the metadata at the end, as the base class does, but renames nothing.
        self._marked = _Marked(
            temporary_path,
            temporary_path,
            checkpoint_metadata_store=checkpoint_metadata_store,
        )

    async def finalize(self) -> None:
        """Write the rest, flush everything, rename the folder, and flush the name."""
        await self._marked.finalize()
        await asyncio.to_thread(self._name)

    def _name(self) -> None:
        written, final = self.get(), self.get_final()
        # The record and the arrays have temporary folders too, inside the step's
        # folder, which flushes them all.
        is_step = ocp.path.atomicity.TMP_DIR_SUFFIX not in final.parent.name
        if is_step:
            flush_tree(written)
        written.rename(final)
        if is_step:
            flush_folder(final.parent)
