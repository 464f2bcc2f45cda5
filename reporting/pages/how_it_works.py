"""The table of ``docs/how_it_works.md``."""

from examples.common.markdown import table
from reporting.pages.parts import measured_on, named
from reporting.pages.real_gains import Record, if_measured


@if_measured("benchmarks.compile_time")
def compile_time(record: Record) -> str:
    """What tracing and compiling take, as a Markdown table."""
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


PAGE = named(compile_time)
