"""A small post-activation residual network for 8x8 images, in Flax linen."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.common.layers import Block


class ResNet(nn.Module):
    """Stem, residual blocks that each halve the image, global mean, head.

    Batch Normalization follows every convolution directly, as SparseOpt's theory
    requires. It does not follow the head.

    Attributes:
      width: channels of the stem and of the first block; each further block doubles
        them.
      strides: one per block.
      classes: number of classes.
    """

    width: int
    strides: Sequence[int] = (2, 2)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return logits (n, classes) of images (n, height, width, channels)."""
        conv, norm = _layers(train)
        x = conv(self.width, (3, 3), name="stem")(images)
        x = nn.relu(norm(name="norm_stem")(x))
        for index, stride in enumerate(self.strides):
            x = Block(
                self.width * 2**index, stride, _layers, name=f"block_{index + 1}"
            )(x, train)
        return nn.Dense(self.classes, name="head")(jnp.mean(x, axis=(1, 2)))


def _layers(train: bool):
    """Return the convolution and the normalisation that the network is built from."""
    conv = functools.partial(
        nn.Conv, use_bias=False, kernel_init=nn.initializers.he_normal()
    )
    # A short memory: these runs have hundreds of steps, not hundreds of thousands.
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    return conv, norm
