"""Networks whose training steps are measured on compact parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.common.mlp import MLP
from examples.language_model.net import LanguageModel, Size

NAMES = ("mlp", "llama", "vit")


class VisionTransformer(nn.Module):
    """An encoder of image patches like ViT; all kernels belong to ``Dense``."""

    width: int
    layers: int
    heads: int

    @nn.compact
    def __call__(self, patches: jax.Array) -> jax.Array:
        """Return logits (n, 1000) of patches (n, patches, features)."""
        x = nn.Dense(self.width, name="embed")(patches)
        heads = (*x.shape[:2], self.heads, self.width // self.heads)
        for _ in range(self.layers):
            normed = nn.LayerNorm()(x)
            q, k, v = (nn.Dense(self.width)(normed).reshape(heads) for _ in range(3))
            mixed = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
            x = x + nn.Dense(self.width)(mixed)
            hidden = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(1000, name="head")(nn.LayerNorm()(x).mean(1))


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and one batch for it.

    Attributes:
      title: its name in tables.
      model: a linen module.
      inputs: one batch of inputs.
      labels: classes, one for each row of logits.
      dense: paths of kernels that stay dense.
      arguments: keyword arguments of its call.
    """

    title: str
    model: nn.Module
    inputs: np.ndarray
    labels: np.ndarray
    dense: tuple[str, ...] = ("embed/kernel", "head/kernel")
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def params(self) -> Any:
        """Return its initial weights."""
        key = jax.random.key(0, impl="rbg")
        init = jax.jit(lambda: self.model.init(key, self.inputs, **self.arguments))
        return init()["params"]

    def loss(self, apply: Callable[..., Any], params: Any) -> jax.Array:
        """Return the mean cross-entropy, with ``apply`` evaluating the network."""
        logits = apply({"params": params}, self.inputs, **self.arguments)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, self.labels)
        return jnp.mean(losses)


def network(name: str, quick: bool) -> Network:
    """Return one of ``NAMES``; a tiny one, if quick."""
    draw = np.random.default_rng(0)
    if name == "mlp":
        batch, image, width = (16, 16, 256) if quick else (128, 32, 2048)
        return Network(
            f"MLP {image**2}-{width}-{width}-{image**2}, batch {batch}",
            MLP(2, width, image**2, momentum=None),
            draw.standard_normal((batch, image, image, 1), np.float32),
            draw.integers(image**2, size=batch),
            dense=("hidden_1/kernel",),
            arguments={"train": True},
        )
    if name == "llama":
        size, rows = (Size(128, 128, 2, 1), (2, 17)), (4, 257)
        size, rows = size if quick else (Size(1024, 2816, 16, 4), rows)
        tokens = draw.integers(256, size=rows, dtype=np.int32)
        title = f"LLaMA-shaped, {size.layers} layers, width {size.width}, "
        title += f"MLP {size.hidden}, {rows[0]} x {rows[1] - 1} tokens"
        return Network(title, LanguageModel(size), tokens[:, :-1], tokens[:, 1:])
    batch, patches, width, layers = (2, 4, 128, 1) if quick else (8, 64, 384, 12)
    return Network(
        f"ViT-small-like, {layers} layers, width {width}, {batch} x {patches} patches",
        VisionTransformer(width, layers, width // 64),
        draw.standard_normal((batch, patches, 768), np.float32),
        draw.integers(1000, size=batch),
    )
