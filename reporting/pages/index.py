"""The first screen of ``docs/index.md``, taken from the README."""

import re

from reporting.pages.parts import named
from reporting.stored import ROOT

_MARKER = re.compile(r"<!-- (begin|end) \w+ -->\n")


def first_screen() -> str:
    """Return the README up to the details, with links adapted to ``docs``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, begin, rest = text.partition("<!-- begin first_screen -->\n")
    shown, end, _ = rest.partition("<!-- end first_screen -->")
    if not (begin and end):
        raise ValueError("README.md has no markers of its first screen")
    shown = _MARKER.sub("", shown).replace("](docs/", "](")
    return re.sub(r"\]\((?=examples/|CONTRIBUTING)", "](../", shown)


PAGE = named(first_screen)
