"""The tables of ``docs/real_gains.md``; those without a record say so."""

import functools
from collections.abc import Callable
from typing import Any

from examples.common.markdown import table
from examples.compact_transformer import report
from reporting.pages.parts import measured_on, named
from reporting.stored import load, path_of, select
from sparseopt_jax.compute.crossover import least_sparsity
from sparseopt_jax.compute.kernel_products import BlockShape

Record = dict[str, Any]
SPARSITIES = (0.8, 0.9, 0.95)
README_BLOCK = 64
AIMS = {
    "time": "the MLP's dense step / its step",
    "bytes": "bytes kept for sparse kernels / (density x dense)",
    "temporaries": "temporaries / those of the dense step",
    "update": "an update of the masks by RigL, in steps",
}
KINDS = {
    "masks": "masks, all arrays dense",
    "compact moments": "`compact=True`: moments of active blocks",
    "compact": "compact parameters",
}


def if_measured(
    program: str, by: str | None = None
) -> Callable[[Callable[[Record], str]], Callable[[], str]]:
    """Make a table of a program's record, or a note that there is none.

    Args:
      program: the program of the record.
      by: the command that measures it, if not the program itself.
    """

    def decorate(show: Callable[[Record], str]) -> Callable[[], str]:
        @functools.wraps(show)
        def shown() -> str:
            if not path_of(program).exists():
                return f"Not measured yet: `python -m {by or program}` measures it.\n"
            return show(load(program))

        return shown

    return decorate


def _by_block(
    record: Record, cell: Callable[[Record], str], all_cores: bool = True
) -> str:
    """Return a line per network, number of cores and block, a cell per sparsity."""
    lines, seen = [], set()
    for found in record["tables"]:
        key, alike = found["key"], [found]
        if not all_cores:
            if key["network"] in seen:
                continue
            alike = select(record["tables"], network=key["network"])
        seen.add(key["network"])
        rows = [row for t in alike for row in select_kind(t, "compact")]
        for block in sorted({row["block"] for row in rows}):
            cells = {r["sparsity"]: cell(r) for r in rows if r["block"] == block}
            first = (key["name"], *[str(key["cores"])] * all_cores, str(block))
            lines.append((*first, *(cells.get(s, "-") for s in SPARSITIES)))
    head = ("network", *["cores"] * all_cores, "block")
    return table((*head, *(f"sparsity {s:g}" for s in SPARSITIES)), lines)


def select_kind(found: Record, kind: str) -> list[Record]:
    """Return the rows of a table whose weights are stored in one way."""
    return [row for row in found["rows"] if row["kind"] == kind]


@if_measured("benchmarks.compact_parameters")
def compact_steps(record: Record) -> str:
    """Show the speed of a step relative to the dense one, as a Markdown table."""
    return _steps(record)


def _steps(record: Record) -> str:
    shown = _by_block(record, lambda row: f"{row['speedup']['median']:.2f}x")
    return f"{shown}\n{measured_on(record)}\n"


@if_measured("benchmarks.compact_parameters")
def gains(record: Record) -> str:
    """Show the same with one block size, network by network, for the README."""
    networks = dict.fromkeys(found["key"]["network"] for found in record["tables"])
    tables = [
        found | {"rows": [row for row in found["rows"] if row["block"] == README_BLOCK]}
        for network in networks
        for found in sorted(
            select(record["tables"], network=network),
            key=lambda found: found["key"]["cores"],
        )
    ]
    return _steps(record | {"tables": tables})


def crossover() -> str:
    """Show from which sparsity products run by block, as a Markdown table."""
    lines = []
    for block in (16, 32, 64, 128):
        shapes = (BlockShape((block, block), (8, 8), 8, rows) for rows in (64, 1024))
        lines.append((str(block), *(f"{least_sparsity(shape):g}" for shape in shapes)))
    return table(("block", "up to 64 rows of inputs", "more"), lines)


@if_measured("benchmarks.compact_parameters")
def compact_bytes(record: Record) -> str:
    """Show what is kept, and what a step needs in addition, as a Markdown table."""
    parts = ("kept_of_dense", "temporary_of_dense", "peak_of_dense")
    return _by_block(
        record, lambda row: " / ".join(f"{row[p]:.2f}" for p in parts), all_cores=False
    )


@if_measured("benchmarks.compact_parameters")
def compact_aims(record: Record) -> str:
    """Show the aims and how often they were met, as a Markdown table."""
    lines = []
    where = "{network}, {cores}, {block}, {sparsity}"
    for aim, words in AIMS.items():
        groups: dict[tuple[str, float], list[Record]] = {}
        for claim in select(record["claims"], aim=aim):
            if "met" in claim:
                at = "at_least" if "at_least" in claim else "at_most"
                groups.setdefault((at, claim[at]), []).append(claim)
        for (at, limit), group in sorted(groups.items(), key=lambda item: item[0]):
            choose = min if at == "at_least" else max
            worst = choose(group, key=lambda claim: claim["measured"])
            lines.append(
                (
                    words,
                    f"{at.replace('_', ' ')} {limit:g}",
                    f"{sum(claim['met'] for claim in group)} of {len(group)}",
                    f"{worst['measured']:.2f} ({where.format(**worst['key'])})",
                )
            )
    return table(
        ("what", "aim", "met", "worst (network, cores, block, sparsity)"), lines
    )


@if_measured("benchmarks.compact_parameters")
def dense_arrays(record: Record) -> str:
    """Show the savings if parameters stay dense arrays, as a Markdown table."""
    lines = [
        (
            words,
            str(found["key"]["cores"]),
            f"{row['speedup']['median']:.2f}x",
            f"{row['kept_of_dense']:.2f}",
            f"{row['temporary_of_dense']:.2f}",
        )
        for found in select(record["tables"], network="mlp")
        for kind, words in KINDS.items()
        for row in select_kind(found, kind)
        if (row["block"], row["sparsity"]) == (64, 0.9)
    ]
    head = ("kept", "cores", "dense step / step", "bytes kept", "temporaries")
    return table(head, lines)


@if_measured("benchmarks.sparse_products")
def sparse_products(record: Record) -> str:
    """Show XLA's dense time over that of other products, as a Markdown table.

    For the dense product itself, the table shows GFLOP/s.
    """
    cells: dict[str, list[str]] = {}
    batches = list(dict.fromkeys(found["key"]["batch"] for found in record["tables"]))
    for batch in batches:
        by_name: dict[str, list[str]] = {}
        for found in select(record["tables"], batch=batch):
            for row in found["rows"]:
                ratio = f"{1 / row['ratio']['median']:.2g}"
                if row["name"] == found["baseline"]:
                    operations = 2 * batch * found["key"]["width"] ** 2
                    ratio = f"{operations / row['median_ms'] / 1e6:.0f}"
                by_name.setdefault(row["name"], []).append(ratio)
        for name, ratios in by_name.items():
            cells.setdefault(name, []).append(" / ".join(ratios))
    lines = [(name, *ratios) for name, ratios in cells.items()]
    shown = table(("product", *(f"batch {batch}" for batch in batches)), lines)
    return f"{shown}\n{measured_on(record)}\n"


@if_measured("studies.block_accuracy")
def block_accuracy(record: Record) -> str:
    """Show the accuracy cost of blocks, as a Markdown table."""
    (found,) = record["tables"]
    lines = []
    for row in found["rows"]:
        lost = "-"
        if row["lost"]:
            mean, low, high = (100 * row["lost"][k] for k in ("mean", "low", "high"))
            lost = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['sd']:.1f}"
        lines.append((row["name"], accuracy, lost))
    head = ("", "accuracy %", "blocks minus weights [95 % interval]")
    return f"{table(head, lines)}\n{found['title']}.\n"


@if_measured("examples.compact_transformer")
def compact_transformer(record: Record) -> str:
    """Show the curves and the costs of the example, as Markdown tables."""
    return report.markdown(record)


PAGE = named(
    compact_steps,
    crossover,
    compact_bytes,
    compact_aims,
    dense_arrays,
    sparse_products,
    block_accuracy,
    compact_transformer,
)
