"""Pages for files of the repository outside ``docs/``.

The changelog, the guide for contributors and the citation become pages, and so does
every program that a page mentions; pictures of results are copied. Links between files
of the repository become links between pages.
"""

import ast
import functools
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "studies/results"
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
CITATION = "CITATION.cff"
NOTEBOOKS = "examples/notebooks"

_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
# A program in code: its path, its folder's path, or the command that runs it.
_PROGRAM = re.compile(
    r"(?<!\[)`((?:python -m )?"
    r"((?:benchmarks|examples|studies)(?:[./]\w+)+)[^`\n]*)`(?!\])"
)


def on_config(config: Any) -> None:
    """Link the repository, if the environment variable REPOSITORY_URL is set."""
    url = os.environ.get("REPOSITORY_URL", "")
    config.repo_url, config.repo_name = url, url.rpartition("/")[2]


def on_files(files: Files, config: Any) -> Files:
    """Add pages and pictures of the repository."""
    for picture in sorted(ROOT.glob(f"{RESULTS}/**/*.png")):
        place = page_of(str(picture.relative_to(ROOT)))
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    cff = yaml.safe_load((ROOT / CITATION).read_text(encoding="utf-8"))
    files.append(File.generated(config, "citation.md", content=citation(cff)))
    for source in sorted(programs()):
        page = File.generated(config, page_of(source), content=listing(source))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, **options: Any) -> str:
    """Make a page's links lead to pages, and remove test names from code blocks."""
    del options
    markdown = re.sub(r"^```python \w+$", "```python", markdown, flags=re.MULTILINE)
    return linked(markdown, page.file.src_uri)


def linked(markdown: str, page: str) -> str:
    """Return a page with links to pages in place of links to repository files.

    >>> linked("[a](../examples/quickstart/nnx.py) [b](faq.md#x)", "tutorials.md")
    '[a](sources/examples/quickstart/nnx.py.md) [b](faq.md#x)'
    >>> linked("[a](docs/methods.md) `examples/digits/model.py`", "changelog.md")
    '[a](methods.md) [`examples/digits/model.py`](sources/examples/digits/model.py.md)'
    """
    here = posixpath.dirname(page)

    def link(found: re.Match[str]) -> str:
        source = resolved(found[1], page)
        if source is None:
            return found[0]
        return posixpath.relpath(page_of(source), here or ".") + found[2]

    def program(found: re.Match[str]) -> str:
        source = source_of(found[2])
        if source is None:
            return found[0]
        return f"[`{found[1]}`]({posixpath.relpath(page_of(source), here or '.')})"

    return _PROGRAM.sub(program, _LINK.sub(link, markdown))


def resolved(link: str, page: str) -> str | None:
    """Return the repository path to which a page's link leads; None if there is none.

    >>> resolved("../examples/digits", "scaling.md")
    'examples/digits'
    """
    written = {place: posixpath.dirname(source) for source, place in PAGES.items()}
    folder = written.get(page, posixpath.dirname(f"docs/{page}"))
    if page.startswith("gallery/"):
        folder = NOTEBOOKS
    path = posixpath.normpath(posixpath.join(folder, link))
    return path if (ROOT / path).exists() else None


def source_of(program: str) -> str | None:
    """Return the file or the folder of a program, by its path or its module.

    >>> source_of("examples.digits"), source_of("examples.quickstart.linen")
    ('examples/digits', 'examples/quickstart/linen.py')
    >>> source_of("examples/quickstart/nnx.py"), source_of("examples/results")
    ('examples/quickstart/nnx.py', None)
    """
    path = program.removesuffix(".py").replace(".", "/")
    if (ROOT / f"{path}.py").exists():
        return f"{path}.py"
    return path if any((ROOT / path).glob("*.py")) else None


def page_of(source: str) -> str:
    """Return the page, or the file of the site, that shows a file of the repository.

    >>> page_of("docs/methods.md"), page_of("studies/results/a.png")
    ('methods.md', 'results/a.png')
    >>> page_of("examples/notebooks/digits.ipynb")
    'gallery/digits.md'
    >>> page_of("examples/digits"), page_of("CHANGELOG.md")
    ('sources/examples/digits/index.md', 'changelog.md')
    """
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    if source.startswith(f"{RESULTS}/"):
        return "results/" + source.removeprefix(f"{RESULTS}/")
    if (ROOT / source).is_dir():
        return f"sources/{source}/index.md"
    if source.startswith(f"{NOTEBOOKS}/") and not source.endswith(".py"):
        name = source.removeprefix(f"{NOTEBOOKS}/")
        return "gallery/" + name.replace(".ipynb", ".md")
    return PAGES.get(source, f"sources/{source}.md")


@functools.cache
def programs() -> frozenset[str]:
    """Return the files and folders of programs that pages link to or mention."""
    texts = {str(p.relative_to(ROOT / "docs")): p for p in ROOT.glob("docs/**/*.md")}
    texts |= {page: ROOT / source for source, page in PAGES.items()}
    found: set[str] = set()
    for page, path in texts.items():
        text = path.read_text(encoding="utf-8")
        links = (resolved(link, page) for link, _ in _LINK.findall(text))
        named = (source_of(program) for _, program in _PROGRAM.findall(text))
        for source in (*links, *named):
            if source and page_of(source).startswith("sources/"):
                found |= set(with_files(source))
    return frozenset(found)


def with_files(source: str) -> Iterator[str]:
    """Yield a program, or a folder and the programs in it."""
    path = ROOT / source
    if path.exists():
        yield source
    if path.is_dir():
        for file in sorted(path.glob("*.py")):
            if file.stat().st_size:
                yield f"{source}/{file.name}"


def listing(source: str) -> str:
    """Return the page of a program, or of a folder of programs."""
    path = ROOT / source
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {source}\n\n"
    if path.is_dir():
        rows = (
            f"| [`{file.rpartition('/')[2]}`]({file.rpartition('/')[2]}.md) | "
            f"{summary(ROOT / file)} |\n"
            for file in with_files(source)
            if file != source
        )
        return f"{head}| file | what it is |\n| --- | --- |\n{''.join(rows)}"
    code = path.read_text(encoding="utf-8")
    language = "python" if path.suffix == ".py" else "text"
    return f"{head}````{language}\n{code}````\n"


def summary(path: Path) -> str:
    """Return the first line of a program's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0].replace("|", r"\|")


def citation(cff: dict[str, Any]) -> str:
    """Return the page of a citation file: BibTeX for the package and its papers."""
    lines = [f"# Citation\n\n{cff['message']}\n\n## The package\n", bibtex(cff)]
    for paper in cff["references"]:
        lines += [f"\n## {paper['title']}\n", bibtex(paper)]
    return "\n".join(lines)


def bibtex(entry: dict[str, Any]) -> str:
    """Return an entry of a citation file as a block of BibTeX.

    >>> author = {"family-names": "Mocanu", "given-names": "Elena"}
    >>> paper = {"type": "article", "title": "A", "authors": [author], "year": 2018}
    >>> print(bibtex(paper))
    ```bibtex
    @article{mocanu2018,
      title = {A},
      author = {Mocanu, Elena},
      year = {2018},
    }
    ```
    """
    authors = [
        ", ".join(
            author[part] for part in ("family-names", "given-names") if part in author
        )
        or f"{{{author['name']}}}"
        for author in entry["authors"]
    ]
    first = entry["authors"][0].get("family-names", entry["title"]).lower()
    kinds = {"conference-paper": "inproceedings", "article": "article"}
    fields = {
        "title": entry["title"].strip(),
        "author": " and ".join(authors),
        "booktitle": entry.get("collection-title"),
        "journal": entry.get("journal"),
        "year": entry.get("year"),
        "version": entry.get("version"),
        "url": entry.get("url"),
    }
    body = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
    kind = kinds.get(entry["type"], "software")
    return "\n".join(
        ["```bibtex", f"@{kind}{{{first}{entry.get('year', '')},", *body, "}", "```"]
    )
