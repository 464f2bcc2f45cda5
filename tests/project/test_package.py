"""The package as a whole."""

import subprocess
import sys
import textwrap

import sparseopt_jax as so


def test_every_public_name_exists_and_is_documented():
    for name in so.__all__:
        value = getattr(so, name)
        is_alias = name in (
            "Dims",
            "First",
            "Include",
            "TrainStep",
            "Where",
        )  # documented in place
        assert is_alias or value.__doc__ or name == "__version__", name


def test_importing_touches_no_device_and_loads_no_flax():
    program = """
        import sys
        import jax
        import sparseopt_jax as so
        from jax.extend import backend
        heavy = {"flax", "tensorflow", "tensorflow_datasets", "matplotlib", "orbax"}
        heavy |= {"rich", "PIL"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        calls = []
        jax.devices = lambda *args: calls.append(args)
        assert so.linen.TrainState and so.nnx.mask_model
        assert not calls
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
