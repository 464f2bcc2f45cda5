"""What ``docs/index.md`` has from the README: its first screen."""

import re

from reporting.pages.parts import named
from reporting.stored import ROOT

_MARKER = re.compile(r"<!-- (begin|end) \w+ -->\n")


def first_screen() -> str:
    """The README up to the details, with links as they are in ``docs``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, begin, rest = text.partition("<!-- begin first_screen -->\n")
    shown, end, _ = rest.partition("<!-- end first_screen -->")
    if not (begin and end):
        raise ValueError("README.md has no markers of its first screen")
    shown = _MARKER.sub("", shown).replace("](docs/", "](")
    return re.sub(r"\]\((?=examples/|CONTRIBUTING)", "](../", shown)


PAGE = named(first_screen)
