"""Writes the tables of the README from the stored results.

    python benchmarks/tables.py

A test keeps the README equal to what this writes.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"


def load(name: str) -> dict[str, Any]:
    """A stored result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def digits() -> str:
    """The comparison that ``make demo`` makes, as a Markdown table."""
    head = ("method", "test accuracy %", "active weights", "explored", "ms per step")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
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
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for table in record["tables"]:
        rows = {row["name"]: row for row in table["rows"]}
        times = [
            f"{rows[name]['median_ms']:,.1f} ms"
            for name in ("top_k_mask", "lax.top_k", "argsort")
        ]
        ratio = f"{rows['argsort']['ratio']['median']:.0f}x"
        lines.append("| " + " | ".join([table["title"], *times, ratio]) + " |")
    machine = record["machine"]
    about = f"{machine['cores']} cores, jax {record['versions']['jax']}, medians."
    return "\n".join([*lines, "", about]) + "\n"


def render(text: str) -> str:
    """The README with its tables as the results have them."""
    for name, table in (("digits", digits), ("speed", speed)):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, marker, tail = rest.partition(end)
        if not marker:
            raise ValueError(f"the README has no markers {begin.strip()} and {end}")
        text = head + begin + table() + marker + tail
    return text


if __name__ == "__main__":
    README.write_text(render(README.read_text()))
