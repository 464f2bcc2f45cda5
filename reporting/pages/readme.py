"""The tables and facts of ``README.md``."""

from typing import Any

import sparseopt_jax as so
from examples.common.markdown import table
from reporting.pages.parts import named
from reporting.pages.real_gains import gains, select_kind
from reporting.stored import load, select
from sparseopt_jax.layers.structures import Structure
from sparseopt_jax.topologies.catalogue import METHODS

SPARSITY = 0.9
BLOCKS = (64, 128)  # the sizes that pay most
# What a user wants, what provides it, and the page with the reasons.
WHICH = (
    (
        "to start, with a fixed number of weights",
        "so.rigl(0.9, every=100, stop=7_500)",
        "",
    ),
    (
        "the same without dense gradients",
        "so.set_(0.9, every=100, stop=7_500)",
        "",
    ),
    (
        "faster steps and less memory",
        "so.rigl(0.9, every=100, stop=7_500, structure=so.Block((64, 64)))",
        "with [compact parameters](docs/real_gains.md)",
    ),
    (
        "higher accuracy, where a dense start is affordable",
        "so.gradual_magnitude(0.9, every=100, stop=7_500)",
        "",
    ),
    ("2:4 sparsity", "so.sr_ste(structure=so.NM(2, 4))", ""),
    (
        "a language model whose optimizer keeps active weights only",
        "so.smet(2e-3, so.set_smet(0.75, block=8, stop=20_000))",
        "an optimizer with its topology: [SMET](docs/memory.md#smet)",
    ),
    (
        "to prune a trained network",
        'so.prune(params, "sparsegpt", sparsity=0.5, calibration=calibration)',
        "[after training](docs/methods.md#after-training)",
    ),
    (
        "to fine-tune with the masks it has",
        "so.static(masks=so.masks_of(params))",
        "",
    ),
)


def facts() -> str:
    """List the reasons to use the package: a number and a link each."""
    return "".join(
        f"- {fact()}\n" for fact in (_accurate, _faster, _cheap, _sorted, _complete)
    )


def which() -> str:
    """Show the method for each purpose, as a Markdown table."""
    lines = [
        (wanted, ", ".join(filter(None, (f"`{call}`", note))))
        for wanted, call, note in WHICH
    ]
    return table(("you want", "use"), lines)


def digits() -> str:
    """Show the comparison that ``make demo`` makes, as a Markdown table."""
    head = ("method", "test accuracy %", "active weights", "explored", "ms per step")
    rows = []
    for entry in load("examples.digits")["results"]:
        explored = entry["explored"]
        cells = (
            entry["label"],
            _accuracy(entry),
            f"{entry['active']:,}",
            "-" if explored is None else f"{100 * explored:.0f} %",
            f"{entry['ms_per_step']:.1f}",
        )
        rows.append(cells)
    return table(head, rows)


def _accuracy(entry: dict[str, Any]) -> str:
    """Return mean and standard deviation over the seeds, in percent."""
    mean, sd = (entry[f"test_accuracy_{name}"] for name in ("mean", "sd"))
    return f"{100 * mean:.1f} ± {100 * sd:.1f}"


def _range(values: list[float], form: str) -> str:
    """Return the smallest and the largest number, once if they look alike."""
    ends = (format(end, form) for end in (min(values), max(values)))
    return " to ".join(dict.fromkeys(ends))


def _accurate() -> str:
    entries = {entry["label"]: entry for entry in load("examples.digits")["results"]}
    rigl, dense = entries["RigL"], entries["dense"]
    share = rigl["active"] / rigl["weights"]
    return (
        f"**{100 * rigl['test_accuracy_mean']:.1f} % test accuracy with "
        f"{100 * share:.0f} % of the weights**; dense, the same ResNet on scanned "
        f"digits has {100 * dense['test_accuracy_mean']:.1f} % "
        "([results](docs/results.md#scanned-digits))."
    )


def _faster() -> str:
    def gains(network: str) -> tuple[str, str]:
        rows = [
            row
            for found in select(tables, network=network)
            for row in select_kind(found, "compact")
            if row["sparsity"] == SPARSITY and row["block"] in BLOCKS
        ]
        speedups = [row["speedup"]["median"] for row in rows]
        memory = [100 * row["peak_of_dense"] for row in rows]
        return _range(speedups, ".1f"), _range(memory, ".0f")

    tables = load("benchmarks.compact_parameters")["tables"]
    (fast, memory), (decoder_fast, decoder_memory) = gains("mlp"), gains("llama")
    blocks = " and ".join(map(str, BLOCKS))
    return (
        f"**Training steps {fast} times as fast, in {memory} % of the memory**: an MLP "
        f"with blocks of {blocks} at a sparsity of {SPARSITY:g}, on CPU; a decoder "
        f"{decoder_fast} times, in {decoder_memory} % "
        "([real gains](docs/real_gains.md))."
    )


def _cheap() -> str:
    (claim,) = select(load("benchmarks.step_overhead")["claims"], kind="training")
    return (
        f"**{claim['measured']:.2f} times the time of a dense training step** with "
        "masks on dense arrays, updated every 100 steps by RigL, SparseOpt included "
        "([how it works](docs/how_it_works.md#what-a-step-costs))."
    )


def _sorted() -> str:
    ratios = [
        row["ratio"]["median"]
        for found in load("benchmarks.selection")["tables"]
        for row in found["rows"]
        if row["name"] == "argsort"
    ]
    return (
        f"**Exact top-k {_range(ratios, '.0f')} times as fast as by sorting**, among 1 "
        "and 10 million weights "
        "([how it works](docs/how_it_works.md#selecting-without-sorting))."
    )


def _complete() -> str:
    structures = [
        name
        for name in so.__all__
        if isinstance(getattr(so, name), type)
        and issubclass(getattr(so, name), Structure)
    ]
    return (
        # Including `phases`, which is not a method of a paper.
        f"**{len(METHODS) + 1} methods and {len(structures)} structures** with any "
        "Optax optimizer ([methods](docs/methods.md)); interrupted runs resume bit for "
        "bit ([checkpoints](docs/surviving.md))."
    )


PAGE = named(facts, gains, which, digits)
