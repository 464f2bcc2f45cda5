"""Versions and devices on which a result depends."""

import platform

import flax
import jax
import optax

import sparseopt_jax as so


def versions() -> dict[str, str]:
    """Return the versions and the kind of device that produced the numbers."""
    modules = {"sparseopt_jax": so, "jax": jax, "optax": optax, "flax": flax}
    found = {
        **{name: module.__version__ for name, module in modules.items()},
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }
    # Without a setting, recent NVIDIA GPUs multiply float32 as TF32.
    if precision := jax.config.jax_default_matmul_precision:  # pyright: ignore
        found["matmul_precision"] = precision
    return found
