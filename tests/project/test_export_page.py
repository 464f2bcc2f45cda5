"""The statements of ``docs/export.md`` are true."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparseopt_jax as so
from sparseopt_jax.exporting.safetensors_file import read as read_safetensors
from tests.helpers.pages import block_names, code, find, names, read, rows, run_block

PAGE = read("docs/export.md")
SPARSITIES = (0.8, 0.9, 0.95, 0.99)


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 8))}
    opt_state = so.sparsify(optax.sgd(0.1), so.static(0.9)).init(params)
    params = so.apply_masks(params, opt_state)
    masks = so.get_masks(opt_state)
    return {"params": params, "opt_state": opt_state, "masks": masks}


def test_its_programs_run(given, capsys):
    kernel = np.asarray(given["params"]["kernel"])
    left = run_block(PAGE, "export", **given)
    np.testing.assert_array_equal(left["params"]["kernel"], kernel)
    assert float(capsys.readouterr().out) == pytest.approx(1 - 13 / 128)
    assert run_block(PAGE, "resume")["topology"].masks

    with open("network.safetensors", "rb") as file:
        tensors, _ = read_safetensors(bytearray(file.read()))
    left = run_block(PAGE, "bitmask", tensors=tensors)
    np.testing.assert_array_equal(left["kernel"], kernel)

    x = jnp.ones((4, 16))
    left = run_block(PAGE, "csr", **given, x=x)
    np.testing.assert_array_equal(left["in_scipy"].toarray(), kernel)
    np.testing.assert_array_equal(left["in_jax"].todense(), kernel)
    np.testing.assert_allclose(left["outputs"], x @ kernel, rtol=1e-6)
    left = run_block(PAGE, "single", **given, scipy=left["scipy"])
    np.testing.assert_array_equal(left["matrix"].toarray(), kernel)


def test_every_block_has_a_test():
    assert block_names(PAGE) == ["export", "resume", "bitmask", "csr", "single"]


@pytest.mark.parametrize("row", rows(PAGE, "sizes"), ids=lambda row: code(row[0]))
def test_files_are_as_small_as_the_table_says(row, tmp_path):
    kernel = np.random.default_rng(0).permutation(1024**2).astype(np.float32)
    kernel = kernel.reshape(1024, 1024)
    for sparsity, share in zip(SPARSITIES, row[2:6], strict=True):
        mask = kernel >= round(sparsity * kernel.size)
        path = tmp_path / str(sparsity)
        so.export(path, np.where(mask, kernel, 0), mask, format=eval(code(row[0])))
        assert f"{path.stat().st_size / kernel.nbytes:.3f}" == share


def test_its_names_exist():
    for name in names(PAGE):
        find(name)
