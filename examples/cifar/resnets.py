"""Residual networks for small images: ResNet-20 and WRN-22-2, in Flax linen.

Parameters, running statistics and logits are float32 in any computation dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from examples.common.layers import Block, conv_and_norm

STAGES = 3


class ResNet(nn.Module):
    """The ResNet of He et al. for CIFAR; three blocks per stage make it ResNet-20.

    Batch Normalization follows every convolution directly, as SparseOpt's theory
    requires; this includes the convolutions of the shortcuts, which the original
    network does not have. It does not follow the head.

    Attributes:
      width: channels of the stem and of the first stage; each further stage doubles
        them.
      blocks: residual blocks in each of the three stages.
      classes: number of classes.
      dtype: dtype of the computation up to the head.
      dropout: must be 0; ``WideResNet`` has dropout.

    References:
      He et al., Deep residual learning, 2015 (arXiv 1512.03385), section 4.2.
    """

    width: int = 16
    blocks: int = 3
    classes: int = 100
    dtype: Any = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return float32 logits (n, classes) of images (n, height, width, channels)."""
        layers = functools.partial(conv_and_norm, self.dtype, fan="fan_in")
        conv, norm = layers(train=train)
        x = conv(self.width, (3, 3), name="stem")(images)
        x = nn.relu(norm(name="norm_stem")(x))
        block = functools.partial(Block, layers=layers)
        x = _stages(block, self.width, self.blocks, x, train)
        return _logits(self.classes, x)


class WideBlock(nn.Module):
    """BN - relu - conv - BN - relu - dropout - conv, added to the shortcut.

    If the number of channels changes, the shortcut is a convolution of the first relu's
    output, without a normalisation.

    Attributes:
      features: output channels.
      stride: stride of the first convolution and of the shortcut.
      dtype: dtype of the computation.
      dropout: fraction of the activations dropped in training.
    """

    features: int
    stride: int
    dtype: Any
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = conv_and_norm(self.dtype, train, "fan_in")
        strides = (self.stride, self.stride)
        y = nn.relu(norm(name="norm_1")(x))
        if x.shape[-1] != self.features:
            x = conv(self.features, (1, 1), strides, name="conv_shortcut")(y)
        y = conv(self.features, (3, 3), strides, name="conv_1")(y)
        y = nn.relu(norm(name="norm_2")(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        y = conv(self.features, (3, 3), name="conv_2")(y)
        return x + y


class WideResNet(nn.Module):
    """A wide, pre-activation residual network as RigL's authors trained it.

    Each convolution comes after its normalisation, so the second one of a block is
    followed by a sum: ``sparseopt_jax.infer_norm_links`` leaves it undecided.

    Attributes:
      width: channels of the first stage; each further stage doubles them. The stem has
        16; WRN-22-2 is named after a width of 32, twice the stem's.
      blocks: residual blocks in each of the three stages; 3 make a depth of 22.
      classes: number of classes.
      dtype: dtype of the computation up to the head.
      dropout: as in ``WideBlock``.

    References:
      Zagoruyko and Komodakis, Wide residual networks, 2016 (arXiv 1605.07146), in the
      form of the code published with RigL (arXiv 1911.11134).
    """

    width: int = 32
    blocks: int = 3
    classes: int = 10
    dtype: Any = jnp.float32
    dropout: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return float32 logits (n, classes) of images (n, height, width, channels)."""
        conv, norm = conv_and_norm(self.dtype, train, "fan_in")
        x = conv(16, (3, 3), name="stem")(images)
        block = functools.partial(WideBlock, dtype=self.dtype, dropout=self.dropout)
        x = _stages(block, self.width, self.blocks, x, train)
        return _logits(self.classes, nn.relu(norm(name="norm_head")(x)))


NETWORKS = {"resnet20": ResNet, "wrn22_2": WideResNet}


def _stages(
    make: Callable[..., nn.Module], width: int, blocks: int, x: jax.Array, train: bool
) -> jax.Array:
    """Apply three stages; the latter two halve the image and double the channels."""
    for stage in range(STAGES):
        for block in range(blocks):
            x = make(
                features=width * 2**stage,
                stride=2 if stage > 0 and block == 0 else 1,
                name=f"stage_{stage + 1}_block_{block + 1}",
            )(x, train)
    return x


def _logits(classes: int, x: jax.Array) -> jax.Array:
    x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return nn.Dense(classes, name="head")(x)
