"""Read code blocks and tables of the README and the docs."""

import re
from pathlib import Path

import jax
import optax

import sparseopt_jax as so

ROOT = Path(__file__).resolve().parents[2]


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def run_block(text, name, **given):
    """Run the code block ```python name, and return its variables."""
    (code,) = re.findall(rf"```python {name}\n(.*?)```", text, re.DOTALL)
    given |= {"optax": optax, "jax": jax, "so": so}
    exec(compile(code, f"{name} block", "exec"), given)
    return given


def block_names(text):
    """Return the names of all Python blocks, empty for blocks without a name."""
    return re.findall(r"^```python *(.*)$", text, re.MULTILINE)


def rows(text, name):
    """Return the cells between <!-- begin name --> and <!-- end name -->."""
    (table,) = re.findall(
        rf"<!-- begin {name} -->\n(.*?)<!-- end {name} -->", text, re.DOTALL
    )
    _, _, *lines = table.splitlines()
    return [
        [
            cell.strip().replace(r"\|", "|")
            for cell in re.split(r"(?<!\\)\|", line)[1:-1]
        ]
        for line in lines
    ]


def links(text):
    """Return the relative links of a page: the file, and the heading or nothing."""
    found = re.findall(r"\]\(([^):#\s]+)(?:#([\w-]+))?\)", text)
    return [(target, anchor) for target, anchor in found if target]


def anchors(text):
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings}


def code(cell):
    """Return the first piece of code in a cell."""
    return re.findall(r"`([^`]+)`", cell)[0]


def names(text):
    """Return everything that the text calls by ``so.``."""
    return set(re.findall(r"\bso\.([\w.]*\w)", text))


def find(name):
    """Return the object of a dotted name in the package; raise if there is none."""
    target = so
    for part in name.split("."):
        target = getattr(target, part)
    return target
