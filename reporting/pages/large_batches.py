"""The tables of ``docs/large_batches.md``."""

import functools

from examples.common.markdown import table
from reporting.stored import load, select


def reached(program: str) -> str:
    """Show epochs and steps to a fixed loss by batch, as a Markdown table."""
    tables = select(load(program)["tables"], kind="rule")
    cells: dict[tuple[str, int], list[str]] = {}
    names: list[str] = []
    for found in tables:
        for row in found["rows"]:
            if row["optimizer"] not in names:
                names.append(row["optimizer"])
            took = f"> {row['of_epochs']}"
            if row["epochs"] is not None:
                took = f"{row['epochs']:.1f} ({row['steps']:.0f})"
            cells.setdefault((found["key"]["density"], row["batch"]), []).append(took)
    lines = [
        (density, str(batch), *figures) for (density, batch), figures in cells.items()
    ]
    key = tables[0]["key"]
    about = f"Epochs (steps) to a loss of {key['target']:.3g}, {key['seeds']} seeds."
    return f"{table(('network', 'batch', *names), lines)}\n{about}\n"


PAGE = {
    "large_batch": functools.partial(reached, "studies.large_batch"),
    "large_batch_text": functools.partial(reached, "studies.large_batch.text"),
}
