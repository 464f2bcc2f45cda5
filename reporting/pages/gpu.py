"""The tables of ``docs/gpu.md``; those without a record say so."""

from collections.abc import Callable, Sequence
from typing import Any

from examples.common import markdown
from reporting.pages.parts import named
from reporting.pages.real_gains import Record, if_measured
from reporting.stored import select

Rows = dict[str, Record]


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; empty if it has no lines."""
    return markdown.table(head, lines) if lines else ""


def _part(name: str) -> Callable[[Callable[[Record], str]], Callable[[], str]]:
    """Show a part's record, with the device and what is missing."""

    def decorate(show: Callable[[Record], str]) -> Callable[[], str]:
        def whole(record: Record) -> str:
            shown = show(record)
            about = f"{record['device']['name']}, jax {record['versions']['jax']}."
            left_out = [
                f"{failure['what']} ({failure['error']})"
                for failure in record["errors"]
            ]
            if left_out:
                about += f" Left out: {'; '.join(left_out)}."
            return f"{shown}\n{about}\n" if shown else f"{about}\n"

        whole.__name__ = show.__name__
        return if_measured(f"benchmarks.gpu.{name}", "benchmarks.gpu")(whole)

    return decorate


def _rows(record: Record, **key: Any) -> Rows:
    """Return the rows of one table by their names; empty if there is no such table."""
    found = select(record["tables"], **key)
    return {row["name"]: row for row in found[0]["rows"]} if found else {}


def _ms(row: Record | None) -> str:
    return "-" if row is None else f"{row['median_ms']:,.3g} ms"


def _times(row: Record | None) -> str:
    return "-" if row is None else f"{row['ratio']['median']:.2f}x"


def _gib(row: Record | None, name: str = "peak_bytes") -> str:
    return "-" if row is None else f"{row[name] / 2**30:.2f} GiB"


@_part("optimizers")
def gpu_steps(record: Record) -> str:
    """Show what masks add to AdamW's step, as a Markdown table."""
    found = [entry["key"] for entry in select(record["tables"], kind="step")]
    networks = list(dict.fromkeys(key["network"] for key in found))
    head, columns = ["AdamW's step"], []
    for network in networks:
        for key in (key for key in found if key["network"] == network):
            together = key["together"]
            words = "one by one" if together == 1 else f"{together} to a program"
            head.append(f"{network}, {words}")
            columns.append(_rows(record, **key))
        head.append(f"{network}, with an update")
        columns.append(_rows(record, kind="update_step", network=network))
    if not columns:
        return ""
    first = next(iter(columns[0]))
    lines = [(first, *(_ms(rows.get(first)) for rows in columns))]
    for name in [*columns[0]][1:]:
        cells = [
            _ms(rows.get(name)) if "with an" in words else _times(rows.get(name))
            for words, rows in zip(head[1:], columns, strict=True)
        ]
        lines.append((name, *cells))
    return table(head, lines)


@_part("optimizers")
def gpu_selection(record: Record) -> str:
    """Compare the selection with a sort, as a Markdown table."""
    names = ("top_k_mask", "lax.top_k", "argsort", "one read, sum")
    lines = []
    for found in select(record["tables"], kind="selection"):
        rows = _rows(record, **found["key"])
        cells = [_ms(rows.get(name)) for name in names]
        lines.append((found["title"], *cells, _times(rows.get("argsort"))))
    return table(("exact top-k of", *names, "argsort / top_k_mask"), lines)


@_part("optimizers")
def gpu_updates(record: Record) -> str:
    """Compare an update of the masks with a sort, as a Markdown table."""
    lines = []
    for found in select(record["tables"], kind="update"):
        rows, key = _rows(record, **found["key"]), found["key"]
        ours, theirs = rows.get("topology.update"), rows.get("argsort")
        first = f"{key['method']}, {key['network']}, {key['weights']:,} weights"
        lines.append((first, _ms(ours), _ms(theirs), _times(theirs)))
    return table(("update", "topology.update", "argsort", "argsort / update"), lines)


@_part("resnet50")
def gpu_resnet50(record: Record) -> str:
    """Show a step of ResNet-50 and its memory, as a Markdown table."""
    steps, updates = (_rows(record, kind=kind) for kind in ("step", "update"))
    if not steps:
        return ""
    sizes = _rows(record, kind="bytes")
    (found,) = select(record["tables"], kind="step")
    lines = []
    for name, row in steps.items():
        claims = select(record["claims"], kind="amortised", name=name)
        amortised = f"{claims[0]['measured']:.3f}x" if claims else "1x"
        rate = 1e3 * found["key"]["batch"] / row["median_ms"]
        update = updates.get(name) if name != "dense" else None
        cells = (_ms(row), f"{rate:,.0f}", amortised, _ms(update))
        lines.append((name, *cells, _gib(sizes.get(name))))
    head = ("", "step", "images/s", "x dense, amortised", "with an update", "peak")
    return f"{table(head, lines)}\n{found['title'].partition(':')[0]}.\n"


@_part("seeds")
def gpu_seeds(record: Record) -> str:
    """Show the accuracies of corrections, as a Markdown table."""
    head = ("", "correction", "accuracy %", "gain, points [95 %]", "p", "dead neurons")
    lines = []
    for found in select(record["tables"], kind="accuracy"):
        sparsity = f"{found['key']['sparsity']:.0%}"
        for row in found["rows"]:
            accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['sd']:.1f}"
            gain, p = "-", "-"
            if row["gain"]:
                points = [100 * row["gain"][key] for key in ("mean", "low", "high")]
                gain = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points)
                p = f"{row['gain']['p']:.2g}"
            name = row["correction"].replace("_", " ").replace("fan in", "fan-in")
            lines.append((sparsity, name, accuracy, gain, p, f"{row['dead']:.1%}"))
    if not lines:
        return ""
    key = select(record["tables"], kind="accuracy")[0]["key"]
    about = (
        f"ResNet-20, {key['dataset']}, RigL, {key['epochs']:.1f} epochs, "
        f"{key['seeds']} seeds, paired; no learning rate was tuned."
    )
    return f"{table(head, lines)}\n{about}\n"


@_part("language_model")
def gpu_language_model(record: Record) -> str:
    """Show a step of LLaMA-130M and its memory, as a Markdown table."""
    steps, updates = (_rows(record, kind=kind) for kind in ("step", "update"))
    if not steps:
        return ""
    sizes = _rows(record, kind="bytes")
    lines = []
    for name, row in steps.items():
        update = updates.get(name) if name != "Adam, dense" else None
        size = sizes.get(name)
        memory = (_gib(size, "state_bytes"), _gib(size, "temporary_bytes"), _gib(size))
        lines.append((name, _ms(row), _times(row), _ms(update), *memory))
    (found,) = select(record["tables"], kind="step")
    head = ("", "step", "x dense", "update", "optimizer's state", "temporaries", "peak")
    return f"{table(head, lines)}\n{found['title'].rpartition(':')[0]}.\n"


@_part("compact_kernels")
def gpu_compact(record: Record) -> str:
    """Compare steps on compact parameters with dense ones, as a Markdown table."""
    lines = []
    for found in select(record["tables"], kind="step"):
        width = found["key"]["width"]
        sizes = _rows(record, kind="bytes", width=width)
        for row in found["rows"]:
            sparse, dense = sizes[row["name"]], sizes[found["baseline"]]
            kept, peak = (
                f"{sparse[name] / dense[name]:.2f}"
                for name in ("kept_bytes", "peak_bytes")
            )
            speedup = f"{1 / row['ratio']['median']:.2f}x"
            lines.append((str(width), row["name"], _ms(row), speedup, kept, peak))
    head = ("width", "", "step", "dense / step", "kept", "peak")
    return table(head, lines)


PAGE = named(
    gpu_steps,
    gpu_selection,
    gpu_updates,
    gpu_resnet50,
    gpu_seeds,
    gpu_language_model,
    gpu_compact,
)
