"""The tables of ``docs/how_it_works.md``."""

from typing import Any

from examples.common.markdown import table
from reporting.pages.parts import measured_on, named
from reporting.pages.real_gains import Record, if_measured
from reporting.stored import load, select

OPTIMIZERS = ("sgd", "adamw")
STEPS = (
    "masks by hand",
    "static",
    "SET",
    "RigL",
    "RigL + SparseOpt",
    "SET, from the host",
    "RigL, from the host",
)


@if_measured("benchmarks.compile_time")
def compile_time(record: Record) -> str:
    """Show the time of tracing and compiling, as a Markdown table."""
    *networks, digits = record["tables"]
    lines = [
        (rows[0]["program"], *(f"{row['ratio']:.1f}x" for row in rows))
        for rows in zip(*(network["rows"] for network in networks), strict=True)
    ]
    shown = table(("", *(network["key"]["network"] for network in networks)), lines)
    ratio = digits["rows"][0]["ratio"]
    about = (
        f"The whole training step of the network for digits: {ratio:.1f}x with RigL."
    )
    return f"{shown}\n{about} {measured_on(record)}\n"


def speed() -> str:
    """Compare the selection with a sort, as a Markdown table."""
    record = load("benchmarks.selection")
    head = (
        "exact top-k of",
        "top_k_mask",
        "lax.top_k",
        "argsort",
        "argsort / top_k_mask",
    )
    lines = []
    for found in record["tables"]:
        rows = {row["name"]: row for row in found["rows"]}
        times = [
            f"{rows[name]['median_ms']:,.1f} ms"
            for name in ("top_k_mask", "lax.top_k", "argsort")
        ]
        ratio = f"{rows['argsort']['ratio']['median']:.0f}x"
        lines.append((found["title"], *times, ratio))
    return f"{table(head, lines)}\n{measured_on(record)}\n"


def overhead() -> str:
    """Show what masks add to an optimizer's step, as a Markdown table."""
    record = load("benchmarks.step_overhead")

    def rows(**key: Any) -> dict[str, Any]:
        (found,) = select(record["tables"], **key)
        return {row["name"]: row for row in found["rows"]}

    steps, changes = {}, {}
    for name in OPTIMIZERS:
        steps[name] = rows(kind="step", optimizer=name, in_place=True)
        changes[name] = rows(kind="change", optimizer=name)
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
        lines.append((f"{label}: a step with a mask update", *cells))
    return f"{table(head, lines)}\n{measured_on(record)}\n"


def training() -> str:
    """State the overall cost of sparse training on the digits, in a sentence."""
    claims = load("benchmarks.step_overhead")["claims"]
    (claim,) = select(claims, kind="training")
    ratio = claim["measured"]
    return (
        "A whole training step of the digits' ResNet, with RigL, SparseOpt and a mask\n"
        f"update every 100 steps, took {ratio:.2f} times as long as the dense one.\n"
    )


PAGE = named(overhead, training, compile_time, speed)
