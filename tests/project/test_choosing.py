"""The statements of ``docs/choosing.md`` are true and have sources."""

import re

import jax
import jax.numpy as jnp
import pytest

import sparseopt_jax as so
from tests.helpers.pages import (
    ROOT,
    anchors,
    block_names,
    find,
    links,
    names,
    read,
    rows,
    run_block,
)

PAGE = read("docs/choosing.md")


@pytest.mark.parametrize("row", rows(PAGE, "decisions"), ids=lambda row: row[0])
def test_every_decision_has_a_source(row):
    decision, start, source = row
    assert decision and start
    assert "arxiv.org/abs/" in source or links(source) or "](#" in source


def test_every_section_has_sources():
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[2:]:
        assert "arxiv.org/abs/" in section or links(section), section


def test_papers_are_named_as_they_are_linked():
    found = re.findall(r"\[([^\]]*)\]\(https://arxiv.org/abs/([\d.]+)\)", PAGE)
    assert found and all(shown == number for shown, number in found)


def test_links_lead_somewhere():
    for target, anchor in links(PAGE):
        assert (ROOT / "docs" / target).exists(), target
        if anchor:
            assert anchor in anchors(read(f"docs/{target}")), f"{target}#{anchor}"


def test_the_recipe_trains():
    assert block_names(PAGE) == ["recipe"]
    recipe = run_block(PAGE, "recipe")["sparse_recipe"]
    params = {"kernel": jnp.ones((16, 8))}
    tx = recipe(steps=100, batch=4_096)
    state = tx.init(params)
    assert int(so.get_masks(state)["kernel"].sum()) == 13
    updates, _ = jax.eval_shape(tx.update, params, state, params)
    assert updates["kernel"].shape == (16, 8)


def test_names_exist():
    for name in names(PAGE):
        find(name)
