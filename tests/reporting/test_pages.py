"""Helpers shared by the pages."""

import doctest

import pytest

from examples.common import markdown
from reporting import stored, tables
from reporting.pages import parts


@pytest.mark.parametrize(
    "module", [markdown, stored], ids=lambda module: module.__name__
)
def test_its_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_numbers_stand_to_the_right():
    shown = markdown.table(("a", "b", "c"), [("x", "1", "2")], numbers=True)
    assert shown.splitlines()[1] == "| --- | ---: | ---: |"


def test_tables_of_a_page_are_named_after_what_makes_them():
    def one():
        return ""

    assert parts.named(one) == {"one": one}


def test_a_page_without_the_markers_is_refused(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    monkeypatch.setitem(tables.PAGES, page, {"speed": str})
    with pytest.raises(ValueError, match="has no markers <!-- begin speed -->"):
        tables.render(page)
