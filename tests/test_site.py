"""What the site says: every page is on it, every public name, and its code runs."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import sparseopt_jax as so
from tests.pages import ROOT, block_names, find, names, read, run_block

START, CONCEPTS, QUESTIONS, API = (
    read(f"docs/{name}.md") for name in ("index", "concepts", "faq", "api")
)
MODULES = {"checkpoint", "linen", "nnx", "plot"}


def test_every_page_is_on_the_site():
    pages = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/*.md")}
    listed = re.findall(r": ([\w/]+\.md)$", read("mkdocs.yml"), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_every_public_name_has_its_place_in_the_api():
    listed = re.findall(r"^::: ([\w.]+)$", API, re.MULTILINE)
    targets = {
        name: f"{find(name).__module__}.{find(name).__name__}"
        for name in so.__all__
        if name not in MODULES and not name.startswith("__")
    }
    modules = {f"sparseopt_jax.{name}" for name in MODULES}
    assert sorted(listed) == sorted([*targets.values(), *modules])


@pytest.fixture
def network():
    def loss(params, batch):
        return jnp.mean((batch @ params["kernel"] - 1) ** 2)

    params = {"kernel": jnp.ones((16, 8))}
    batches = [jax.random.normal(jax.random.key(i), (4, 16)) for i in range(3)]
    return {"params": params, "loss": loss, "batches": batches}


def test_the_start_runs(network, capsys):
    first, second = block_names(START)
    left = run_block(START, first, **network)
    left = run_block(START, second, **network | left)
    assert "kernel" in capsys.readouterr().out
    assert int(jnp.sum(left["params"]["kernel"] != 0)) == 13


def test_the_concepts_run(network, capsys):
    (name,) = block_names(CONCEPTS)
    tx = so.sparsify(optax.sgd(0.1), so.rigl(0.9, every=10, stop=100))
    opt_state = tx.init(network["params"])
    left = run_block(CONCEPTS, name, **network, opt_state=opt_state)
    assert int(jnp.sum(left["masks"]["kernel"])) == 13
    assert "kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", [START, CONCEPTS, QUESTIONS], ids=["start", "concepts", "questions"]
)
def test_names_exist(page):
    for name in names(page):
        find(name)
