"""What stands for the masks that a phase takes over from the one before."""

from typing import Final

PREVIOUS_MASKS: Final = "kept"
"""As ``masks=`` of a topology in a later one of ``phases``: the masks, or their numbers
of active weights, that the phase before leaves.

A string, so that it can be written in a configuration file and in a checkpoint's record
as it is; no pytree of masks equals it."""
