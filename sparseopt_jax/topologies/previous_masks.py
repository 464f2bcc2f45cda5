"""What stands for the masks that a phase takes over from the one before."""

import enum


class PreviousMasks(enum.Enum):
    """The type of ``PREVIOUS_MASKS``, which is its only value."""

    PREVIOUS_MASKS = enum.auto()

    @property
    def record(self) -> str:
        """What stands for it in a checkpoint's record."""
        return "kept"

    def __repr__(self) -> str:
        return f"so.{self.name}"


PREVIOUS_MASKS = PreviousMasks.PREVIOUS_MASKS
"""As ``masks=`` of a topology in a later one of ``phases``: the masks, or their numbers
of active weights, that the phase before leaves."""
