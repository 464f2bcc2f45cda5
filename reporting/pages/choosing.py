"""The table of ``docs/choosing.md``."""

from typing import Any

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.stored import load, select

SPARSITY = 0.9
# The weights that each method trains.
METHODS = {
    "static": "10 %",
    "SET": "10 %",
    "RigL": "10 %",
    "MEST": "10 %",
    "SNFS": "10 %",
    "Top-KAST": "20 %",
    "GraNet": "50 %, falling to 10 %",
    "GMP": "all, falling to 10 %",
    "AC/DC": "all and 10 % in turn",
    "STE": "all",
}


def methods_chosen() -> str:
    """Compare the accuracies of methods on two networks, as a Markdown table."""
    found = select(load("benchmarks.methods")["tables"], kind="training")
    tables = {entry["key"]["network"]: entry["rows"] for entry in found}
    lines = [("dense", "all", *_accuracies(tables, "dense", None))]
    for method, trained in METHODS.items():
        lines.append((method, trained, *_accuracies(tables, method, SPARSITY)))
    head = ("method", "weights trained", *(f"{name}, %" for name in tables))
    return table(head, lines)


def _accuracies(
    tables: dict[str, list[dict[str, Any]]], method: str, sparsity: float | None
) -> list[str]:
    """Return mean and standard deviation on each network, without a structure."""
    cells = []
    for rows in tables.values():
        (row,) = (
            row
            for row in rows
            if row["method"] == method
            and row["sparsity"] == sparsity
            and row["structure"] in ("", None, "unstructured")
        )
        mean, sd = (100 * row[f"accuracy_{name}"] for name in ("mean", "sd"))
        cells.append(f"{mean:.1f} ± {sd:.1f}")
    return cells


PAGE = named(methods_chosen)
