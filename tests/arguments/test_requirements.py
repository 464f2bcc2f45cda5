"""Imports are declared, and nothing is imported that a use does not need."""

import ast
import functools
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Folders of programs, which are not installed.
PROGRAMS = ("examples", "benchmarks", "studies", "reporting")

# Packages whose names on the index differ from their modules'.
MODULES = {
    "dm-haiku": "haiku",
    "mkdocs-material": "material",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
    "importlib-resources": "importlib_resources",
    "array-record": "array_record",
}
# Declared but not imported: needed by others, or run as programs.
NOT_IMPORTED = {"jaxlib", "array_record", "importlib_resources", "xdist"}


@functools.cache
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def module(requirement):
    """Return a requirement's module, such as ``etils`` of ``etils[epath]>=1.12``."""
    name = re.match(r"[\w.-]+", requirement).group()
    return MODULES.get(name, name)


def required():
    return {module(line) for line in project()["project"]["dependencies"]}


def in_extra(*names):
    extras = project()["project"]["optional-dependencies"]
    return {module(line) for name in names for line in extras[name]}


def in_test_group():
    return {module(line) for line in project()["dependency-groups"]["test"]}


@functools.cache
def imported(folder):
    """Return the third-party modules that a folder imports, with one file each."""
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for name in {name.split(".")[0] for name in modules}:
                found[name] = str(file.relative_to(ROOT))
    ours = {"sparseopt_jax", "tests", *PROGRAMS}
    return {
        name: file
        for name, file in found.items()
        if name not in ours and name not in sys.stdlib_module_names
    }


DECLARED = {
    "sparseopt_jax": lambda: required() | in_extra("plot"),
    **dict.fromkeys(PROGRAMS, lambda: required() | in_extra("plot", "examples")),
    "tests": lambda: required() | in_extra("plot", "examples") | in_test_group(),
}


@pytest.mark.parametrize("folder", DECLARED)
def test_what_is_imported_is_declared(folder):
    assert imported(folder)
    undeclared = {
        name: file
        for name, file in imported(folder).items()
        if name not in DECLARED[folder]()
    }
    assert not undeclared


def test_what_is_declared_is_imported():
    assert not required() - imported("sparseopt_jax").keys() - NOT_IMPORTED
    used = set(NOT_IMPORTED).union(*map(imported, ("sparseopt_jax", *PROGRAMS)))
    assert not in_extra("plot", "examples") - used - {"sparseopt_jax"}
    assert "chex" in imported("tests").keys() & in_test_group()


def test_plain_installation_brings_flax_orbax_and_rich():
    assert {"flax", "orbax", "rich"} <= required()
    assert "chex" not in required()


# The library without an optional package.

WITHOUT = """
    import importlib.abc
    import sys

    missing = {missing!r}

    class NotThere(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in missing:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

    sys.meta_path.insert(0, NotThere())
"""


def run_without(missing, program):
    text = textwrap.dedent(WITHOUT).format(missing=missing) + textwrap.dedent(program)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_plain_optax_needs_jax_and_optax_alone():
    program = """
        import jax
        import jax.numpy as jnp
        import optax
        import sparseopt_jax as so

        params = {"a": {"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)}}
        grads = jax.tree.map(lambda x: x + jnp.arange(8.0), params)
        inner = optax.chain(so.scale_by_sparseopt(), optax.sgd(0.1, momentum=0.9))
        for tx in (
            so.sparsify(inner, so.rigl(0.5, every=2, stop=10)),
            so.sparsify(optax.adam(0.1), so.set_(0.5, every=2, stop=10), packed=True),
            so.sparse_adamw(0.1, so.ste(0.5)),
            so.smet(0.1, so.set_smet(0.5, every=2, stop=10)),
        ):
            opt_state = tx.init(params)
            sparse = so.apply_masks(params, opt_state)
            step = jax.jit(tx.update)
            for _ in range(3):
                updates, opt_state = step(grads, opt_state, sparse)
                sparse = optax.apply_updates(sparse, updates)
            assert so.metrics(sparse, opt_state)
            assert "a/kernel" in str(so.summary(sparse, opt_state))
        page = so.plan(params, so.rigl(0.5, every=2, stop=10))
        assert "a/kernel" in str(page) and "a/kernel" in repr(page)
        assert so.prune(params, "magnitude", sparsity=0.5)
        so.get_masks(opt_state)
        other = missing & {name.split(".")[0] for name in sys.modules}
        assert not other, other
    """
    missing = {"flax", "orbax", "rich", "chex", "etils", "equinox", "haiku"}
    done = run_without(missing | {"matplotlib", "PIL", "scipy", "msgpack"}, program)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "use", "message"),
    [
        ("flax", "so.linen", "sparseopt_jax.linen needs flax: pip install flax,"),
        ("flax", "so.nnx", "sparseopt_jax.nnx needs flax: pip install flax,"),
        ("orbax", "so.checkpoint", "needs orbax-checkpoint: pip install orbax-"),
        ("etils", "so.checkpoint", "sparseopt_jax.checkpoint needs "),
        ("matplotlib", "so.plot", "pip install 'sparseopt_jax[plot]', which includes"),
        ("PIL", "so.plot", "pip install 'sparseopt_jax[plot]', which includes it"),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(missing, use, message):
    done = run_without({missing}, f"import sparseopt_jax as so\n{use}\n")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError") and message in last, done.stderr
