"""Shapes of arrays."""


def leading_axes(shape: tuple[int, ...], ending: tuple[int, ...]) -> tuple | None:
    """Return the axes of a shape before a given ending, or None if it ends otherwise.

    >>> leading_axes((10, 4, 8), (4, 8))
    (10,)
    >>> leading_axes((4, 8), (4, 8))
    ()
    """
    split = len(shape) - len(ending)
    return shape[:split] if split >= 0 and shape[split:] == ending else None
