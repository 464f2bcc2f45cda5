"""The types that public functions take and return have public names as well."""

import ast
import inspect
import textwrap

import pytest

import sparseopt_jax as so

PLACES = (
    so,
    so.topologies,
    so.structures,
    so.schedules,
    so.scores,
    so.distributions,
    so.checkpoint,
)

# The internal storage of masks concerns only their form and the engine.
PRIVATE = {"Masks", "Stored", "View"}


def public():
    """Return functions and classes of the package that users call, by name."""
    found = {}
    for place in (so, so.topologies, so.checkpoint):
        for name in place.__all__:
            value = getattr(place, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found[f"{place.__name__}.{name}"] = value
    return found


PUBLIC = public()


def names_of_ours(value):
    """Return the names that a module imports from the package, or defines."""
    module = ast.parse(inspect.getsource(inspect.getmodule(value)))
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sparseopt_jax"):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (x.id for x in node.targets if isinstance(x, ast.Name))


def annotations(value):
    """Return the names in the annotations of a function or a class's public methods."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for annotation in (*(argument.annotation for argument in given), node.returns):
            for part in ast.walk(annotation) if annotation else ():
                if isinstance(part, ast.Name):
                    yield part.id


@pytest.mark.parametrize("name", PUBLIC)
def test_types_in_a_public_signature_are_public(name):
    value = PUBLIC[name]
    meant = vars(inspect.getmodule(value))
    used = set(annotations(value)) & set(names_of_ours(value)) - PRIVATE
    assert not {
        name
        for name in used
        if not inspect.ismodule(meant[name])
        and not any(getattr(place, name, None) is meant[name] for place in PLACES)
    }
