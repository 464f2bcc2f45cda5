"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> str:
    """A table with a head; numbers stand to the right, below all heads but the first.

    >>> print(table(("a", "b"), [("1", "2")]), end="")
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    marks = ("---", *["---:" if numbers else "---"] * (len(head) - 1))
    lines = [head, marks, *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
