"""The catalogue: every method registered with ``@method`` is public, in its file."""

import inspect

import pytest

import sparseopt_jax as so
from sparseopt_jax.topologies.catalogue import METHODS
from tests.golden_record.variants import METHODS as RECORDED


def test_all_files_hold_a_method_that_is_entered():
    package = so.topologies.__name__ + ".methods"
    files = {make.__module__ for make, *_ in METHODS.values()}
    assert files == {f"{package}.{name}" for name in METHODS}
    assert len(METHODS) >= 17


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_public_and_tells_its_arguments(name):
    assert name in so.__all__ and getattr(so, name) is METHODS[name].make
    parameters = inspect.signature(METHODS[name].make).parameters.values()
    assert not {p.kind for p in parameters} & {
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }
    # Each is described, in the order of the signature.
    text = inspect.getdoc(METHODS[name].make).partition("\nArgs:\n")[2]
    lines = text.partition("\nReturns:")[0].splitlines()
    described = [line.partition(":")[0] for line in lines if line[:3].strip()]
    assert [x.strip() for x in described] == [p.name for p in parameters]


@pytest.mark.parametrize("name", METHODS)
def test_a_paper_is_one_of_arxiv(name):
    number, _, rest = METHODS[name].arxiv.partition(".")
    assert len(number) == 4 and len(rest) in (4, 5) and (number + rest).isdigit()


def test_what_every_method_does_is_recorded():
    # The function that learns thresholds is not a topology.
    assert {name.rstrip("_") for name in METHODS} - {"str"} <= set(RECORDED)
