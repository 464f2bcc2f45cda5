"""The pages that have tables, and the tables in them."""

from pathlib import Path

from reporting.pages import (
    choosing,
    gpu,
    how_it_works,
    index,
    large_batches,
    memory,
    methods,
    paper_figures,
    readme,
    real_gains,
    results,
    scaling,
    surviving,
    tutorials,
    when_it_helps,
    where_sparseopt_goes,
)
from reporting.stored import ROOT

PAGES = {
    ROOT / "README.md": readme.PAGE,
    **{
        ROOT / "docs" / f"{page.__name__.rpartition('.')[2]}.md": page.PAGE
        for page in (
            choosing,
            gpu,
            how_it_works,
            index,
            large_batches,
            memory,
            methods,
            paper_figures,
            real_gains,
            results,
            scaling,
            surviving,
            tutorials,
            when_it_helps,
            where_sparseopt_goes,
        )
    },
}


def render(page: Path) -> str:
    """Return a page with its tables made from the results."""
    text = page.read_text()
    for name, table in PAGES[page].items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, marker, tail = rest.partition(end)
        if not marker:
            raise ValueError(f"{page} has no markers {begin.strip()} and {end}")
        text = head + begin + table() + marker + tail
    return text
