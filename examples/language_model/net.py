"""A LLaMA-style language model in Flax linen.

A decoder of RMSNorm, rotary positions, causal attention and SwiGLU, without biases.
Every kernel belongs to a ``Dense``, (in, out), so a topology makes exactly the kernels
that multiply activations sparse by default; the embedding and the norms stay dense.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Size(NamedTuple):
    """The size of a network.

    Attributes:
      width: features of the residual stream.
      hidden: features of the feed-forward part.
      heads: attention heads; the features per head must be even.
      layers: number of layers.
    """

    width: int
    hidden: int
    heads: int
    layers: int


# Tiny trains in a minute on a CPU. The others are SMET's (arXiv 2606.00888); their
# names count an embedding and a head for 32,000 tokens.
SIZES = {
    "tiny": Size(width=64, hidden=176, heads=2, layers=2),
    "130m": Size(width=768, hidden=2048, heads=12, layers=12),
    "350m": Size(width=1024, hidden=2736, heads=16, layers=24),
    "1b": Size(width=2048, hidden=5461, heads=32, layers=24),
}

# As in Hugging Face's Llama, for every matrix whatever its fan-in.
_INIT = nn.initializers.normal(0.02)


class RMSNorm(nn.Module):
    """Divide by the root mean square over the features, and multiply by a scale.

    Attributes:
      dtype: dtype of the result; the mean is always computed in float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(self.dtype)


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Apply rotary positions: rotate pairs of features by the position's angles.

    The product of a rotated query and a rotated key depends on their distance, not on
    their positions.

    Args:
      x: (..., length, heads, features), an even number of features; feature i is paired
        with feature i + features / 2.
      positions: (length,).

    Returns:
      Array like ``x``.
      Array like ``x``.

    References:
      Su et al., RoFormer, 2021 (arXiv 2104.09864).
    """
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-jnp.arange(half) / half)
    angles = positions[:, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Attention(nn.Module):
    """Causal self-attention.

    Attributes:
      heads: number of heads.
      dtype: dtype of the computation; the softmax is always in float32.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        positions = jnp.arange(length)

        def projected(name):
            features = _dense(width, self.dtype, name)(x)
            return features.reshape(batch, length, self.heads, width // self.heads)

        mixed = jax.nn.dot_product_attention(
            rotated(projected("query"), positions),
            rotated(projected("key"), positions),
            projected("value"),
            is_causal=True,
        )
        return _dense(width, self.dtype, "out")(mixed.reshape(x.shape))


class SwiGLU(nn.Module):
    """The feed-forward part: down(silu(gate(x)) * up(x)).

    Attributes:
      hidden: inner features.
      dtype: dtype of the computation.

    References:
      Shazeer, GLU variants improve transformer, 2020 (arXiv 2002.05202).
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nn.silu(_dense(self.hidden, self.dtype, "gate")(x))
        up = _dense(self.hidden, self.dtype, "up")(x)
        return _dense(x.shape[-1], self.dtype, "down")(gate * up)


class LanguageModel(nn.Module):
    """Embedding, layers of attention and SwiGLU with a norm before each, norm, head.

    Attributes:
      size: the size of the network.
      vocabulary: number of tokens.
      tied: whether the head is the embedding itself, instead of a separate kernel.
      dtype: dtype of the computation; parameters and logits are float32.
    """

    size: Size
    vocabulary: int = 256
    tied: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return next-token logits (batch, length, vocabulary) of (batch, length)."""
        embed = nn.Embed(
            self.vocabulary,
            self.size.width,
            dtype=self.dtype,
            embedding_init=_INIT,
            name="embed",
        )
        x = embed(tokens)
        for layer in range(self.size.layers):
            attention = Attention(
                self.size.heads, self.dtype, name=f"layer_{layer}_attention"
            )
            x = x + attention(self._norm(f"layer_{layer}_attention_norm")(x))
            mlp = SwiGLU(self.size.hidden, self.dtype, name=f"layer_{layer}_mlp")
            x = x + mlp(self._norm(f"layer_{layer}_mlp_norm")(x))
        x = self._norm("norm")(x)
        if self.tied:
            return embed.attend(x).astype(jnp.float32)
        return _dense(self.vocabulary, self.dtype, "head")(x).astype(jnp.float32)

    def _norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.dtype, name=name)


def _dense(features: int, dtype: Any, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=_INIT, name=name)
