"""Masks as packed bits: an eighth of a byte a weight."""

from typing import Any

from sparseopt_jax.masks.byte_storage import ByteStorage
from sparseopt_jax.masks.packing import pack


class BitStorage(ByteStorage):
    """``PackedMask`` nodes; a step reads bool arrays, as of ``ByteStorage``."""

    def pack(self, tree: Any) -> Any:
        """As ``MaskStorage.pack``."""
        return pack(tree)
