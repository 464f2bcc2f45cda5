"""Masks as packed bits: one bit per weight."""

from typing import Any

from sparseopt_jax.masks.byte_storage import ByteStorage
from sparseopt_jax.masks.packing import pack


class BitStorage(ByteStorage):
    """Masks kept as ``PackedMask``; a step reads bool arrays, as in ``ByteStorage``."""

    def pack(self, tree: Any) -> Any:
        """Implement ``MaskStorage.pack``."""
        return pack(tree)
