"""Tables as plain text for any log, and in colours with rich."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

SIMULATED = (
    "Sparsity is simulated on dense arrays: parameters, moments and multiplications "
    "stay those of the dense network. Saved: nothing at run time; masks pack to a bit "
    "a weight, and exact zeros compress in checkpoints."
)

COMPACT = (
    "Parameters and multiplications stay those of the dense network: there sparsity is "
    "simulated. Saved: the optimizer keeps the state of active weights alone."
)

BLOCKS = (
    "Compact parameters are their active blocks: weights, gradients and moments take "
    "memory by the density, and so.sparse_apply multiplies by active blocks alone."
)


@dataclasses.dataclass(frozen=True)
class Page:
    """A table, notes below it, and warnings.

    Attributes:
      head: names of the columns.
      rows: the cells; a column that is empty in all rows is left out.
      words: names of the columns that hold words, which are aligned left.
      styles: a rich style per row, empty for none.
      notes: lines below the table.
      warnings: highlighted lines below the notes.

    Examples:
      >>> page = Page(("layer", "size"), (("a", "10"), ("bias", "2")), notes=("sic",))
      >>> print(page.text())
      layer  size
      a        10
      bias      2
      sic
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str] = frozenset(
        {"layer", "shape", "structure", "compact products", "why dense"}
    )
    styles: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the page as lines without colours."""
        columns = [[name, *cells] for name, cells in self._columns()]
        aligned = []
        for column in columns:
            width = max(map(len, column))
            left = column[0] in self.words
            aligned.append([c.ljust(width) if left else c.rjust(width) for c in column])
        lines = ["  ".join(line).rstrip() for line in zip(*aligned, strict=True)]
        warnings = [f"warning: {line}" for line in self.warnings]
        return "\n".join([*lines, *self.notes, *warnings])

    def renderables(self) -> Iterator[Any]:
        """Yield the page as rich renderables."""
        # Imported here, so that printing plain text need not wait for it.
        from rich import box
        from rich.table import Table
        from rich.text import Text

        columns = self._columns()
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for name, _ in columns:
            table.add_column(
                name,
                justify="left" if name in self.words else "right",
                style="cyan" if name == "density" else "",
                overflow="fold",
            )
        styles = self.styles or ("",) * len(self.rows)
        # As `Text`, because rich would read markup in some paths.
        for style, *cells in zip(styles, *(cells for _, cells in columns), strict=True):
            table.add_row(*map(Text, cells), style=style)
        yield table
        yield from (Text(line) for line in self.notes)
        yield from (
            Text(f"warning: {line}", style="bold red") for line in self.warnings
        )

    def _columns(self) -> list[tuple[str, tuple[str, ...]]]:
        cells = list(zip(*self.rows, strict=True)) or [()] * len(self.head)
        return [
            (name, column)
            for name, column in zip(self.head, cells, strict=True)
            if not column or any(column)
        ]


class Printed(abc.ABC):
    """Prints as plain text with ``print``, as a coloured table with ``rich.print``."""

    @abc.abstractmethod
    def page(self) -> Page:
        """Return what to print."""

    def __str__(self) -> str:
        return self.page().text()

    __repr__ = __str__

    def __rich_console__(
        self, console: "Console", options: "ConsoleOptions"
    ) -> Iterator[Any]:
        yield from self.page().renderables()


def shape(sizes: tuple[int, ...]) -> str:
    """Format a shape as in papers.

    >>> shape((3, 3, 64)), shape(())
    ('3x3x64', 'scalar')
    """
    return "x".join(map(str, sizes)) or "scalar"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage, and NaN as ``-``.

    >>> percent(0.1234), percent(float("nan"))
    ('12.34%', '-')
    """
    return "-" if fraction != fraction else f"{fraction:.2%}"


def memory(size: int) -> str:
    """Format a number of bytes in a readable unit.

    >>> memory(1000), memory(25_600_000)
    ('1,000 bytes', '24.4 MiB')
    """
    if size < 2**20:
        return f"{size:,} bytes"
    if size < 2**30:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.1f} GiB"
