"""The tables of ``docs/memory.md``."""

from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.stored import load


def memory() -> str:
    """Show bytes of the state, and of the compiled step, as a Markdown table."""
    (found,) = load("benchmarks.memory")["tables"]
    dense, *_ = found["rows"]
    head = (
        *("optimizer", "density", "block", "state", "of a sparse leaf"),
        *("step", "update", "step with an update"),
    )
    lines = []
    for row in found["rows"]:
        share = row["leaf"] / dense["leaf"] / row["density"]
        peaks = [
            "-" if taken is None else f"{taken / 2**20:,.0f} MiB"
            for taken in (row["step"], row["change"], row["step_with_change"])
        ]
        sizes = f"{row['state'] / 2**20:,.0f} MiB", f"{share:.2f} x density"
        lines.append(
            (row["optimizer"], f"{row['density']:g}", str(row["block"]), *sizes, *peaks)
        )
    return table(head, lines)


def language_model() -> str:
    """Show the results of the language model's comparison, as a Markdown table."""
    record = load("examples.language_model")
    head = (
        *("method", "learning rate", "bits per byte", "gap to dense"),
        *("setback", "jump", "optimizer's state"),
    )
    lines = []
    for entry in record["results"]:
        bits = entry["bits_per_byte"]
        losses = [
            "-"
            if entry[measure] is None
            else "{mean:+.4f} ± {sd:.4f}".format(**entry[measure]["probe"])
            for measure in ("setback", "jump")
        ]
        lines.append(
            (
                entry["label"],
                f"{entry['learning_rate']:g}",
                f"{bits['mean']:.3f} ± {bits['sd']:.3f}",
                f"{entry['gap_to_dense']:+.3f}",
                *losses,
                f"{entry['optimizer_bytes']:,} B",
            )
        )
    seeds = len(record["results"][0]["bits_per_byte"]["values"])
    about = (
        f"{record['parameters']:,} parameters, {record['active_weights']:,} of "
        f"{record['sparse_weights']:,} weights active in sparse kernels; mean ± "
        f"standard deviation over {seeds} seeds, losses in bits per byte on held-out "
        "text."
    )
    return f"{table(head, lines)}\n{about}\n"


PAGE = named(memory, language_model)
