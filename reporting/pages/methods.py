"""The tables of ``docs/methods.md``."""

from examples.common.markdown import table
from reporting.pages.parts import measured_on, named
from reporting.stored import load, select


def method_results() -> str:
    """Show what every method learns on small networks, as a Markdown table."""
    record = load("benchmarks.methods")
    head = ["method", "structure", "sparsity"]
    tables = {
        (entry["key"]["network"], entry["key"]["kind"]): entry["rows"]
        for entry in record["tables"]
    }
    networks = [network for network, kind in tables if kind == "training"]
    for name in networks:
        head += [f"{name}: accuracy %", "density", "step / dense", "update", "state"]
    found: dict[str, list[str]] = {}
    for name in networks:
        steps = {row["name"]: row for row in tables[name, "step"]}
        changes = {row["name"]: row for row in tables[name, "change"]}
        for row in tables[name, "training"]:
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
    return f"{table(head, list(found.values()))}\n{measured_on(record)}\n"


def straight_through_steps() -> str:
    """Show the cost of masks that follow every step, as a Markdown table."""
    record = load("benchmarks.methods")
    found = select(record["tables"], kind="ste")
    tables = {entry["key"]["network"]: entry["rows"] for entry in found}
    head = ("masks", *(f"{name}: step / dense" for name in tables))
    ratios: dict[str, list[str]] = {}
    for rows in tables.values():
        for row in rows:
            ratio = f"{row['ratio']['median']:.2f}x"
            ratios.setdefault(row["name"], []).append(ratio)
    lines = [(label, *cells) for label, cells in ratios.items()]
    return f"{table(head, lines)}\n{measured_on(record)}\n"


def removed_neurons() -> str:
    """Show the savings of removing neurons, as a Markdown table."""
    record = load("benchmarks.removed_neurons")
    head = ("network", "dead", "parameters", "FLOPs left", "time left", "quartiles")
    lines = []
    for found in select(record["tables"], kind="time"):
        key, (_, after) = found["key"], found["rows"]
        (counted,) = select(record["tables"], **{**key, "kind": "size"})
        (size,) = counted["rows"]
        ratio = after["ratio"]
        lines.append(
            (
                key["network"],
                f"{key['dead']:.0%}",
                f"{size['parameters']:,} → {size['parameters_left']:,}",
                f"{size['flops_left'] / size['flops']:.1%}",
                f"{ratio['median']:.0%}",
                f"{ratio['q1']:.0%} to {ratio['q3']:.0%}",
            )
        )
    return f"{table(head, lines)}\n{measured_on(record)}\n"


def method_changes() -> str:
    """Compare an update of large masks with one by sorting, as a Markdown table."""
    record = load("benchmarks.mask_changes")
    head = ("method", "an update", "by argsort", "argsort / update")
    lines = []
    for entry in record["tables"]:
        rows = {row["name"]: row for row in entry["rows"]}
        cells = (
            entry["key"]["method"],
            f"{rows['topology.update']['median_ms']:,.0f} ms",
            f"{rows['argsort']['median_ms']:,.0f} ms",
            f"{rows['argsort']['ratio']['median']:.1f}x",
        )
        lines.append(cells)
    (weights,) = {entry["key"]["weights"] for entry in record["tables"]}
    return f"{table(head, lines)}\n{weights:,} weights; {measured_on(record)}\n"


PAGE = named(method_results, straight_through_steps, method_changes, removed_neurons)
