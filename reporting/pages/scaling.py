"""The tables of ``docs/scaling.md``."""

from examples.common.markdown import table
from reporting.pages.parts import measured_on, named
from reporting.stored import load, select

DEVICES = (1, 2, 4, 8)
NETWORKS = ("MLP", "ResNet")


def collectives() -> str:
    """Show what an update of the masks sends between devices, as a Markdown table."""
    (found,) = load("benchmarks.collectives")["tables"]
    head = ("devices", "method", "sums", "arrays moved", "temporary memory")
    lines = []
    for row in found["rows"]:
        cells = (
            str(row["devices"]),
            row["method"],
            f"{row['summed_bytes']:,} B",
            f"{row['moved_bytes']:,} B",
            f"{row['temporary_bytes'] / 1e6:.1f} MB",
        )
        lines.append(cells)
    about = f"{found['title'].capitalize()}, for each device; compiled for CPU devices."
    return f"{table(head, lines)}\n{about}\n"


def devices() -> str:
    """Show the cost of sparse training on several devices, as a Markdown table."""
    record = load("benchmarks.devices")
    head = ("devices", *NETWORKS)
    lines = []
    for count in DEVICES:
        claims = select(record["claims"], devices=count)
        ratios = {claim["key"]["network"]: claim["measured"] for claim in claims}
        lines.append((str(count), *(f"{ratios[name]:.2f}x" for name in NETWORKS)))
    return f"{table(head, lines)}\n{measured_on(record)}\n"


PAGE = named(collectives, devices)
