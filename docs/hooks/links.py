"""Link names in code to the API, and arXiv numbers to arXiv."""

import functools
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe

API = Path(__file__).resolve().parents[1] / "api"
PACKAGE = "sparseopt_jax"

# Words that have other senses in code without ``so.``, as arguments and fields.
AMBIGUOUS = {
    *("checkpoint", "distributions", "export", "load", "metrics", "phases", "plan"),
    *("plot", "schedules", "scores", "sparseopt", "structures", "summary"),
    "topologies",
}
# Elements in which a link would be nested in another, or not rendered as one.
_CLOSED = (
    *("a", "autoref", "b", "h1", "h2", "h3", "h4", "h5", "h6", "math", "pre", "script"),
    "summary",
)
_PIECE = re.compile(r"<code>([^<]*)</code>|<(/?)([\w-]+)[^>]*>|([^<]+)|<")
_CALL = re.compile(r"^([A-Za-z_][\w.]*)(?:\(.*\))?$", re.DOTALL)
_PAGE = re.compile(r"\bdocs/([\w/]+)\.md")
_PAPER = re.compile(r"\b(?:arXiv[: ])?(\d\d(?:0[1-9]|1[0-2])\.\d{5})\b(?!%|\.\d)")


@functools.cache
def public_names() -> dict[str, list[str]]:
    """Return the names that each page of the API shows, in its order."""
    return {
        page.name: re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
        for page in sorted(API.glob("*.md"))
    }


@functools.cache
def _targets() -> frozenset[str]:
    return frozenset(name for names in public_names().values() for name in names)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Write the tables of all public names, in the order of the menu."""
    del files
    if page.file.src_uri != "api/index.md":
        return markdown
    (pages,) = (entry["API"] for entry in config.nav if "API" in entry)
    titles = {file: title for entry in pages[1:] for title, file in entry.items()}
    return markdown.replace("<!-- public names -->", _contents(titles))


def on_page_content(html: str, page: Any, **options: Any) -> str:
    """Link the code, the papers and the pages that a page mentions."""
    del options
    if page.file.src_uri.startswith("sources/"):
        return html
    return with_links(html, to_root=posixpath.relpath(".", page.url or "."))


def with_links(html: str, to_root: str = ".") -> str:
    """Return HTML with links from names and from arXiv numbers.

    >>> with_links("<code>so.ste()</code>")
    '<autoref identifier="sparseopt_jax.ste" optional><code>so.ste()</code></autoref>'
    >>> with_links("arXiv 1911.11134")
    '<a href="https://arxiv.org/abs/1911.11134">arXiv 1911.11134</a>'
    >>> with_links("<h2><code>so.rigl</code></h2> <code>rigel</code>")
    '<h2><code>so.rigl</code></h2> <code>rigel</code>'
    >>> with_links("docs/when_it_helps.md says why.", to_root="../..")
    '<a href="../../when_it_helps/">When it helps</a> says why.'
    """
    inside = []

    def piece(found: re.Match[str]) -> str:
        code, closes, tag, text = found.groups()
        if tag in _CLOSED:
            if not closes:
                inside.append(tag)
            elif tag in inside:
                inside.remove(tag)
        if inside:
            return found[0]
        if text:
            return _PAGE.sub(page, _PAPER.sub(_arxiv, text))
        if code and _PAGE.fullmatch(code):
            return _PAGE.sub(page, code)
        name = _named(code) if code else None
        if name:
            return f'<autoref identifier="{name}" optional>{found[0]}</autoref>'
        return found[0]

    def page(found: re.Match[str]) -> str:
        return f'<a href="{to_root}/{found[1]}/">{_heading(found[1])}</a>'

    return _PIECE.sub(piece, html)


@functools.cache
def _heading(page: str) -> str:
    """Return the first heading of a page."""
    text = (API.parent / f"{page}.md").read_text("utf-8")
    return text.partition("\n")[0].removeprefix("# ")


def _arxiv(found: re.Match[str]) -> str:
    return f'<a href="https://arxiv.org/abs/{found[1]}">{found[0]}</a>'


def _named(code: str) -> str | None:
    """Return the API's entry for a name, or for its longest known prefix."""
    call = _CALL.match(code)
    if not call:
        return None
    name = call[1]
    for start in ("so.", f"{PACKAGE}."):
        if name.startswith(start):
            parts = name.removeprefix(start).split(".")
            for end in range(len(parts), 0, -1):
                target = ".".join((PACKAGE, *parts[:end]))
                if target in _targets():
                    return target
            return None
    target = f"{PACKAGE}.{name}"
    return target if name not in AMBIGUOUS and target in _targets() else None


def _contents(titles: dict[str, str]) -> str:
    """Return a table for each page: its names, with a line on each."""
    package = griffe.load(
        PACKAGE, search_paths=[API.parents[1]], docstring_parser="google"
    )
    tables = []
    for file, title in titles.items():
        place = posixpath.basename(file)
        rows = (_row(package, name) for name in public_names()[place])
        head = f"## [{title}]({place})\n\n| name | what it is |\n| --- | --- |\n"
        tables.append(head + "".join(rows))
    return "\n".join(tables)


def _row(package: Any, name: str) -> str:
    target = package[name.removeprefix(f"{PACKAGE}.")]
    if target.is_module:
        return ""
    first = re.split(r"(?<=\.)\s|\n\n", target.docstring.value.strip())[0]
    first = " ".join(first.split()).replace("``", "`").replace("|", r"\|")
    called = "so." + name.removeprefix(f"{PACKAGE}.")
    return f"| [`{called}`][{name}] | {first} |\n"
