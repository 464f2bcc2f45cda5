"""What a result depends on beside its configuration."""

import platform

import flax
import jax
import optax

import sparseopt_jax as so


def versions() -> dict[str, str]:
    """The versions that numbers were made with, and on which kind of device."""
    modules = {"sparseopt_jax": so, "jax": jax, "optax": optax, "flax": flax}
    found = {
        **{name: module.__version__ for name, module in modules.items()},
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }
    # Without one, float32 is multiplied as TF32 on recent NVIDIA GPUs.
    if precision := jax.config.jax_default_matmul_precision:  # pyright: ignore
        found["matmul_precision"] = precision
    return found
