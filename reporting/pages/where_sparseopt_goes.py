"""The tables of ``docs/where_sparseopt_goes.md``."""

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.stored import load, select


def placement() -> str:
    """Show the correction's effect before and after each optimizer, as a table."""
    (found,) = load("benchmarks.placement")["tables"]
    head = ("optimizer", "before", "after")
    lines = [
        (row["optimizer"], *(f"{row[place]:.1g}" for place in ("before", "after")))
        for row in found["rows"]
    ]
    return table(head, lines)


def dying() -> str:
    """Show accuracy and dead neurons with the correction and with a least fan-in."""
    (found,) = select(load("studies.photographs.neurons")["tables"], kind="neurons")
    lines: dict[str, list[str]] = {}
    for row in found["rows"]:
        if (row["arm"], row["rule"]) in _DYING:
            cells = lines.setdefault(row["network"], ["-"] * len(_DYING))
            what = f"{100 * row['accuracy']:.1f} %, {100 * row['dead']:.0f} % dead"
            cells[[*_DYING].index((row["arm"], row["rule"]))] = what
    head = ("network", *_DYING.values())
    return table(head, [(name, *cells) for name, cells in lines.items()])


# Columns by the correction and the rule that keeps neurons alive.
_DYING = {
    ("none", "none"): "without",
    ("fan_in", "none"): "with the correction",
    ("none", "least fan-in of 2"): "`min_fan_in=2`",
    ("fan_in", "least fan-in of 2"): "both",
}

PAGE = named(placement, dying)
