"""The value of ``masks=`` that takes over the masks of the previous phase."""

from typing import Final

PREVIOUS_MASKS: Final = "kept"
"""Pass it as ``masks=`` to any but the first topology of ``phases``: that phase keeps
the masks of the previous one, or their numbers of active weights if it updates them.

It is a string, so that configuration files and checkpoint records can hold it. No
pytree of masks equals it."""
