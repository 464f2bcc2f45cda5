"""The table of ``docs/where_sparseopt_goes.md``."""

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.stored import load


def placement() -> str:
    """What the correction changes in front of an optimizer and behind, as a table."""
    (found,) = load("benchmarks.placement")["tables"]
    head = ("optimizer", "in front", "behind")
    lines = [
        (row["optimizer"], *(f"{row[place]:.1g}" for place in ("before", "after")))
        for row in found["rows"]
    ]
    return table(head, lines)


PAGE = named(placement)
