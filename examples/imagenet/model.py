"""ResNet-50 v1.5 and its narrower, shallower relatives, in Flax linen."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.common.layers import conv_and_norm


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, added to the shortcut, then relu.

    Attributes:
      features: channels of the inner convolutions; the output has four times as many.
      stride: stride of the 3x3 convolution, as in v1.5, and of the shortcut.
      dtype: dtype of the computation.
      zero_init: whether the scale of the last normalisation is initialised to 0, so
        that the block starts as its shortcut.
    """

    features: int
    stride: int
    dtype: Any
    zero_init: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = conv_and_norm(self.dtype, train, "fan_out")
        strides = (self.stride, self.stride)
        y = conv(self.features, (1, 1), name="conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = conv(self.features, (3, 3), strides, name="conv_2")(y)
        y = nn.relu(norm(name="norm_2")(y))
        y = conv(4 * self.features, (1, 1), name="conv_3")(y)
        scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        y = norm(scale_init=scale, name="norm_3")(y)
        if x.shape != y.shape:
            x = conv(4 * self.features, (1, 1), strides, name="conv_shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Stem, stages of bottlenecks, global mean, head.

    Batch Normalization follows every convolution directly, as SparseOpt's theory
    requires. Parameters, running statistics and logits are float32 in any computation
    dtype.

    Attributes:
      width: channels of the stem and of the first stage; each further stage doubles
        them.
      stages: blocks in each stage; (3, 4, 6, 3) is ResNet-50.
      classes: number of classes.
      dtype: dtype of the computation up to the head.
      zero_init: as in ``Bottleneck``.
    """

    width: int = 64
    stages: Sequence[int] = (3, 4, 6, 3)
    classes: int = 1000
    dtype: Any = jnp.bfloat16
    zero_init: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return float32 logits (n, classes) of images (n, height, width, channels)."""
        conv, norm = conv_and_norm(self.dtype, train, "fan_out")
        x = conv(self.width, (7, 7), (2, 2), name="stem")(images)
        x = nn.relu(norm(name="norm_stem")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages, start=1):
            for block in range(1, blocks + 1):
                x = Bottleneck(
                    features=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 1 else 1,
                    dtype=self.dtype,
                    zero_init=self.zero_init,
                    name=f"stage_{stage}_block_{block}",
                )(x, train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.classes, name="head")(x)
