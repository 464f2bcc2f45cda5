"""One style for all figures."""

from typing import Any

from matplotlib.axes import Axes

# Colours that the colour-blind can tell apart, and that differ in grey as well.
BLUE, ORANGE, LIGHT_ORANGE = "#0072B2", "#D55E00", "#F0A35E"
WHITE, GREY, DARK_GREY = "#FFFFFF", "#AAAAAA", "#666666"


def plain(axes: Any) -> Axes:
    """Takes the frame off where it says nothing."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes
