"""One style for all figures."""

from typing import Any

from matplotlib.axes import Axes

# Colours that are safe for colour-blind readers and differ in grey as well.
BLUE, ORANGE, LIGHT_ORANGE = "#0072B2", "#D55E00", "#F0A35E"
WHITE, GREY, DARK_GREY = "#FFFFFF", "#AAAAAA", "#666666"


def plain(axes: Any) -> Axes:
    """Remove the parts of the frame that carry no information."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes
