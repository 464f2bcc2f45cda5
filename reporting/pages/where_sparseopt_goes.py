"""The table of ``docs/where_sparseopt_goes.md``."""

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.stored import load


def placement() -> str:
    """Show the correction's effect before and after each optimizer, as a table."""
    (found,) = load("benchmarks.placement")["tables"]
    head = ("optimizer", "before", "after")
    lines = [
        (row["optimizer"], *(f"{row[place]:.1g}" for place in ("before", "after")))
        for row in found["rows"]
    ]
    return table(head, lines)


PAGE = named(placement)
