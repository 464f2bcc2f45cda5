"""Residual networks for small images: ResNet-20 and WRN-22-2, in Flax linen.

Parameters and running statistics are float32 whatever is computed in, and so are the
logits.
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
    """The ResNet of He et al. for CIFAR; three blocks a stage make it ResNet-20.

    Every convolution is followed by Batch Normalization with nothing in between, which
    is what SparseOpt's theory asks for; so are the convolutions of the shortcuts, where
    the first network of this kind had none. The head is not.

    Attributes:
      width: channels of the stem and of the first stage; each stage doubles them.
      blocks: residual blocks in each of the three stages.
      classes: number of classes.
      dtype: type that everything up to the head is computed in.
      dropout: has to be 0; ``WideResNet`` has one.

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
        """Logits (n, classes), float32, of images (n, height, width, channels)."""
        layers = functools.partial(conv_and_norm, self.dtype, fan="fan_in")
        conv, norm = layers(train=train)
        x = conv(self.width, (3, 3), name="stem")(images)
        x = nn.relu(norm(name="norm_stem")(x))
        block = functools.partial(Block, layers=layers)
        x = _stages(block, self.width, self.blocks, x, train)
        return _logits(self.classes, x)


class WideBlock(nn.Module):
    """BN - relu - conv - BN - relu - dropout - conv, added to the shortcut.

    Where the number of channels changes, the shortcut is a convolution of what the
    first relu gives, without a normalisation.

    Attributes:
      features: channels of the output.
      stride: of the first convolution, and of the shortcut.
      dtype: type that everything is computed in.
      dropout: share of the activations that is dropped in training.
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

    The normalisation stands before each convolution, so what follows the second one of
    a block is a sum: ``sparseopt_jax.infer_norm_links`` leaves it undecided.

    Attributes:
      width: channels of the first stage; each stage doubles them. The stem has 16;
        a width of 32, twice that, is what WRN-22-2 is named after.
      blocks: residual blocks in each of the three stages; 3 make a depth of 22.
      classes: number of classes.
      dtype: type that everything up to the head is computed in.
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
        """Logits (n, classes), float32, of images (n, height, width, channels)."""
        conv, norm = conv_and_norm(self.dtype, train, "fan_in")
        x = conv(16, (3, 3), name="stem")(images)
        block = functools.partial(WideBlock, dtype=self.dtype, dropout=self.dropout)
        x = _stages(block, self.width, self.blocks, x, train)
        return _logits(self.classes, nn.relu(norm(name="norm_head")(x)))


NETWORKS = {"resnet20": ResNet, "wrn22_2": WideResNet}


def _stages(
    make: Callable[..., nn.Module], width: int, blocks: int, x: jax.Array, train: bool
) -> jax.Array:
    """Three stages of blocks; each but the first halves the image, and has twice the
    channels.
    """
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
