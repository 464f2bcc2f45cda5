"""Writes the tables of README and docs from the stored results.

    python -m reporting

A test keeps them equal to what this writes.
"""

from pathlib import Path
from typing import Any

from reporting.markdown import table as _table
from reporting.pages import paper_figures as paper_tables
from reporting.pages import results as results_tables
from reporting.pages import tutorials

# Its neighbours, from wherever it is run.
from reporting.pages import when_it_helps as convergence_tables
from reporting.stored import load

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZERS = ("sgd", "adamw")
DEVICES = (1, 2, 4, 8)
MODELS = ("MLP", "ResNet")
STEPS = (
    "masks by hand",
    "static",
    "SET",
    "RigL",
    "RigL + SparseOpt",
    "SET, from the host",
    "RigL, from the host",
)


def digits() -> str:
    """The comparison that ``make demo`` makes, as a Markdown table."""
    head = ("method", "test accuracy %", "active weights", "explored", "ms per step")
    rows = []
    for entry in load("digits")["results"]:
        mean, sd = (entry[f"test_accuracy_{name}"] for name in ("mean", "sd"))
        explored = entry["explored"]
        cells = (
            entry["label"],
            f"{100 * mean:.1f} ± {100 * sd:.1f}",
            f"{entry['active']:,}",
            "-" if explored is None else f"{100 * explored:.0f} %",
            f"{entry['ms_per_step']:.1f}",
        )
        rows.append(cells)
    return _table(head, rows)


def speed() -> str:
    """What the selection takes against a sort, as a Markdown table."""
    record = load("selection")
    head = (
        "exact top-k of",
        "top_k_mask",
        "lax.top_k",
        "argsort",
        "argsort / top_k_mask",
    )
    lines = []
    for table in record["tables"]:
        rows = {row["name"]: row for row in table["rows"]}
        times = [
            f"{rows[name]['median_ms']:,.1f} ms"
            for name in ("top_k_mask", "lax.top_k", "argsort")
        ]
        ratio = f"{rows['argsort']['ratio']['median']:.0f}x"
        lines.append((table["title"], *times, ratio))
    return f"{_table(head, lines)}\n{_about(record)}\n"


def overhead() -> str:
    """What masks add to an optimizer's step, as a Markdown table."""
    record = load("step_overhead")
    tables = {table["title"]: table["rows"] for table in record["tables"]}

    def rows(optimizer: str, ending: str) -> dict[str, Any]:
        (title,) = (
            title
            for title in tables
            if title.startswith(optimizer) and title.endswith(ending)
        )
        return {row["name"]: row for row in tables[title]}

    steps = {name: rows(name, "without a change, in place") for name in OPTIMIZERS}
    changes = {name: rows(name, ": a change") for name in OPTIMIZERS}
    head = ("on ResNet-50's 25.6 million parameters", *OPTIMIZERS)
    alone = [f"{steps[name][name]['median_ms']:.1f} ms" for name in OPTIMIZERS]
    lines = [("the optimizer alone", *alone)]
    for label in STEPS:
        ratios = [steps[name][label]["ratio"]["median"] for name in OPTIMIZERS]
        lines.append((label, *(f"{ratio:.2f}x" for ratio in ratios)))
    for label in ("SET", "RigL"):
        times = [
            changes[name][f"{label}, step with a change"]["median_ms"]
            for name in OPTIMIZERS
        ]
        cells = (f"{time:.0f} ms" for time in times)
        lines.append((f"{label}: a step with a change", *cells))
    return f"{_table(head, lines)}\n{_about(record)}\n"


def training() -> str:
    """What sparse training costs in whole on the digits, as a sentence."""
    (claim,) = (
        claim
        for claim in load("step_overhead")["claims"]
        if claim["what"].startswith("digits")
    )
    ratio = claim["measured"]
    return (
        "A whole training step of the digits' ResNet, with RigL, SparseOpt and a\n"
        f"change every 100 steps, took {ratio:.2f} times as long as the dense one.\n"
    )


def devices() -> str:
    """What sparse training costs on several devices, as a Markdown table."""
    record = load("devices")
    head = ("devices", *MODELS)
    ratios = {claim["what"]: claim["measured"] for claim in record["claims"]}
    lines = [
        (
            str(count),
            *(
                f"{ratios[f'{name}, {count} devices, sparse / dense']:.2f}x"
                for name in MODELS
            ),
        )
        for count in DEVICES
    ]
    return f"{_table(head, lines)}\n{_about(record)}\n"


def _about(record: dict[str, Any]) -> str:
    cores, version = record["machine"]["cores"], record["versions"]["jax"]
    return f"{cores} cores, jax {version}, medians."


def collectives() -> str:
    """What a change of the masks sends between devices, as a Markdown table."""
    (table,) = load("collectives")["tables"]
    head = ("devices", "method", "sums", "arrays moved", "temporary memory")
    lines = []
    for row in table["rows"]:
        cells = (
            str(row["devices"]),
            row["method"],
            f"{row['summed_bytes']:,} B",
            f"{row['moved_bytes']:,} B",
            f"{row['temporary_bytes'] / 1e6:.1f} MB",
        )
        lines.append(cells)
    about = f"{table['title'].capitalize()}, for each device; compiled for CPU devices."
    return f"{_table(head, lines)}\n{about}\n"


def method_results() -> str:
    """What every method learns on small networks, as a Markdown table."""
    record = load("methods")
    head = ["method", "structure", "sparsity"]
    tables = {table["title"]: table["rows"] for table in record["tables"]}
    words = ": a step"
    networks = [title.removesuffix(words) for title in tables if title.endswith(words)]
    for name in networks:
        head += [f"{name}: accuracy %", "density", "step / dense", "change", "state"]
    found: dict[str, list[str]] = {}
    for name in networks:
        (trained,) = (
            rows for title, rows in tables.items() if title.startswith(f"{name}: train")
        )
        steps = {row["name"]: row for row in tables[f"{name}: a step"]}
        changes = {row["name"]: row for row in tables[f"{name}: a change"]}
        for row in trained:
            label = ", ".join(filter(None, (row["method"], row["structure"])))
            asked = "-" if row["sparsity"] is None else f"{row['sparsity']:g}"
            cells = found.setdefault(
                label, [row["method"], row["structure"] or "-", asked]
            )
            sd = row["accuracy_sd"]
            accuracy = f"{100 * row['accuracy_mean']:.1f}"
            change = changes.get(label)
            cells += [
                accuracy if sd is None else f"{accuracy} ± {100 * sd:.1f}",
                f"{row['density']:.3f}",
                f"{steps[label]['ratio']['median']:.2f}x",
                f"{change['median_ms']:.1f} ms" if change else "-",
                f"{row['state_bytes']:,} B",
            ]
    return f"{_table(head, list(found.values()))}\n{_about(record)}\n"


def method_changes() -> str:
    """A change of large masks against the same by sorting, as a Markdown table."""
    record = load("mask_changes")
    words = ": a change of "
    tables = [table for table in record["tables"] if words in table["title"]]
    head = ("method", "a change", "by argsort", "argsort / change")
    lines = []
    for table in tables:
        rows = {row["name"]: row for row in table["rows"]}
        cells = (
            table["title"].partition(words)[0],
            f"{rows['topology.update']['median_ms']:,.0f} ms",
            f"{rows['argsort']['median_ms']:,.0f} ms",
            f"{rows['argsort']['ratio']['median']:.1f}x",
        )
        lines.append(cells)
    size = tables[0]["title"].partition(words)[2]
    return f"{_table(head, lines)}\n{size.capitalize()}; {_about(record)}\n"


def straight_through_steps() -> str:
    """What masks that follow every step add to it, as a Markdown table."""
    record = load("methods")
    words = ": a step by STE"
    tables = {
        table["title"].removesuffix(words): table["rows"]
        for table in record["tables"]
        if table["title"].endswith(words)
    }
    head = ("masks", *(f"{name}: step / dense" for name in tables))
    ratios: dict[str, list[str]] = {}
    for rows in tables.values():
        for row in rows:
            ratio = f"{row['ratio']['median']:.2f}x"
            ratios.setdefault(row["name"], []).append(ratio)
    lines = [(label, *cells) for label, cells in ratios.items()]
    return f"{_table(head, lines)}\n{_about(record)}\n"


def placement() -> str:
    """What the correction changes in front of an optimizer and behind, as a table."""
    (table,) = load("placement")["tables"]
    head = ("optimizer", "in front", "behind")
    lines = [
        (row["optimizer"], *(f"{row[place]:.1g}" for place in ("before", "after")))
        for row in table["rows"]
    ]
    return _table(head, lines)


def memory() -> str:
    """Bytes of the state, and of the compiled step, as a Markdown table."""
    (table,) = load("memory")["tables"]
    dense, *_ = table["rows"]
    head = (
        *("optimizer", "density", "block", "state", "of a sparse leaf"),
        *("step", "change", "step with the change in it"),
    )
    lines = []
    for row in table["rows"]:
        share = row["leaf"] / dense["leaf"] / row["density"]
        peaks = [
            "-" if taken is None else f"{taken / 2**20:,.0f} MiB"
            for taken in (row["step"], row["change"], row["step_with_change"])
        ]
        sizes = f"{row['state'] / 2**20:,.0f} MiB", f"{share:.2f} x density"
        lines.append(
            (row["optimizer"], f"{row['density']:g}", str(row["block"]), *sizes, *peaks)
        )
    return _table(head, lines)


def language_model() -> str:
    """What the language model's comparison came to, as a Markdown table."""
    record = load("language_model")
    head = (
        *("method", "learning rate", "bits per byte", "gap to dense"),
        *("setback", "jump", "optimizer's state"),
    )
    lines = []
    for entry in record["results"]:
        own = entry["bits_per_byte"]
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
                f"{own['mean']:.3f} ± {own['sd']:.3f}",
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
    return f"{_table(head, lines)}\n{about}\n"


def large_batch() -> str:
    """Epochs and steps to a fixed loss on digits by batch, as a Markdown table."""
    return _large_batch("large_batch")


def large_batch_text() -> str:
    """The same on text."""
    return _large_batch("large_batch_text")


def _large_batch(name: str) -> str:
    words = ": the rule, "
    tables = {
        table["title"].split(",")[0]: table
        for table in load(name)["tables"]
        if words in table["title"]
    }
    cells: dict[tuple[str, int], list[str]] = {}
    names: list[str] = []
    for density, table in tables.items():
        for row in table["rows"]:
            if row["optimizer"] not in names:
                names.append(row["optimizer"])
            took = f"> {row['of_epochs']}"
            if row["epochs"] is not None:
                took = f"{row['epochs']:.1f} ({row['steps']:.0f})"
            cells.setdefault((density, row["batch"]), []).append(took)
    lines = [(density, str(batch), *own) for (density, batch), own in cells.items()]
    what, seeds = tables["dense"]["title"].split(words)
    target = float(what.rpartition(" ")[2])
    about = f"Epochs (steps) to a loss of {target:.3g}, {seeds}."
    return f"{_table(('network', 'batch', *names), lines)}\n{about}\n"


PAGES = {
    ROOT / "README.md": (digits, speed, overhead, training),
    ROOT / "docs" / "methods.md": (
        method_results,
        straight_through_steps,
        method_changes,
    ),
    ROOT / "docs" / "memory.md": (memory, language_model),
    ROOT / "docs" / "large_batches.md": (large_batch, large_batch_text),
    ROOT / "docs" / "scaling.md": (collectives, devices),
    ROOT / "docs" / "where_sparseopt_goes.md": (placement,),
    ROOT / "docs" / "paper_figures.md": paper_tables.PAGE,
    ROOT / "docs" / "when_it_helps.md": convergence_tables.PAGE,
    ROOT / "docs" / "results.md": results_tables.PAGE,
    ROOT / "docs" / "tutorials.md": tutorials.PAGE,
}


def render(page: Path) -> str:
    """A page with its tables as the results have them."""
    text = page.read_text()
    for table in PAGES[page]:
        name = table.__name__
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, marker, tail = rest.partition(end)
        if not marker:
            raise ValueError(f"{page} has no markers {begin.strip()} and {end}")
        text = head + begin + table() + marker + tail
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page))
