"""Redraw the pictures of the stored records, without measuring anything.

    python -m studies.pictures

Programs draw their pictures themselves; use this after a change of the drawing code.
"""

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from reporting import stored
from studies.convergence import picture as convergence
from studies.large_batch import picture as large_batch
from studies.paper.accuracy import LENGTHS

PROGRAMS: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = {
    "studies.convergence": convergence.draw_gains,
    "studies.photographs": convergence.draw_gains,
    "studies.paper.accuracy": lambda record: convergence.draw(
        record["conditions"], columns=len(LENGTHS)
    ),
    "studies.large_batch": large_batch.draw,
    "studies.large_batch.text": large_batch.draw,
}


def main() -> None:
    """Write the pictures next to the records."""
    for program, draw in PROGRAMS.items():
        path = stored.path_of(program).with_suffix(".png")
        stored.write_picture(draw(stored.load(program)), path)


if __name__ == "__main__":
    main()
