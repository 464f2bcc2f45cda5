"""Tables for the site: numbers and code do not break, and long results fold."""

import re
from typing import Any

# Longer tables of results are folded under a line that describes them.
LONGEST = 16
# Cells of at most this many characters stay on one line.
SHORT = 22
# Long tables to look things up in.
OPEN = ("methods", "keys")

_MARKED = re.compile(
    r"<!-- begin (\w+) -->\s*(<table>.*?</table>)(.*?)<!-- end \1 -->", re.DOTALL
)
_CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
_CODE = re.compile(r"<code>([^<]{24,})</code>")


def on_page_content(html: str, **options: Any) -> str:
    """Fold the long tables of a page, and prevent breaks within cells."""
    del options
    return _CELL.sub(_unbroken, _MARKED.sub(_folded, html))


def _folded(found: re.Match[str]) -> str:
    r"""Return a table within ``details``, if it is long.

    >>> row = "<tr><td>1</td></tr>"
    >>> table = f"<table><thead><tr><th>n</th></tr></thead>{17 * row}</table>"
    >>> html = f"<!-- begin sizes -->\n{table}<!-- end sizes -->"
    >>> print(_MARKED.sub(_folded, html)[:69])
    <details class="results"><summary>Table of 17 rows: n</summary><table
    """
    name, table, rest = found.groups()
    rows = table.count("<tr>") - table.count("</thead>")
    if rows <= LONGEST or name in OPEN:
        return found[0]
    heads = re.findall(r"<th[ >].*?</th>", table, re.DOTALL)
    columns = "; ".join(re.sub(r"<[^>]*>", "", head) for head in heads)
    summary = f"<summary>Table of {rows} rows: {columns}</summary>"
    return f'<details class="results">{summary}{table}{rest}</details>'


def _unbroken(found: re.Match[str]) -> str:
    """Return a short cell on one line; in long code, keep each word whole.

    >>> _unbroken(re.match(".*", "<td>-0.7 [-2.6, +1.3]</td>"))
    '<td class="short">-0.7 [-2.6, +1.3]</td>'
    >>> cell = "<td><code>python -m examples.digits --seed 3</code></td>"
    >>> print(_unbroken(re.match(".*", cell)))
    <td><code class="long"><span>python</span> <span>-m</span>
    <span>examples.digits</span> <span>--seed</span> <span>3</span></code></td>
    """

    def words(code: re.Match[str]) -> str:
        spans = " ".join(f"<span>{word}</span>" for word in code[1].split(" "))
        return f'<code class="long">{spans}</code>'

    cell = _CODE.sub(words, found[0])
    if len(re.sub(r"<[^>]*>", "", cell)) <= SHORT:
        return cell.replace("<td", '<td class="short"', 1)
    return cell
