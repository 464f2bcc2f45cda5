"""Building blocks of residual networks in Flax linen."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax


def conv_and_norm(dtype: Any, train: bool, fan: Literal["fan_in", "fan_out"]):
    """Return the convolution and the normalisation that a network is built from.

    Parameters and running statistics are float32 in any computation dtype.

    Args:
      dtype: dtype of the computation.
      train: whether batches are normalised by their own statistics.
      fan: the divisor of Kaiming's initial variance, ``"fan_in"`` or ``"fan_out"``; the
        normal distribution is not truncated, unlike in Flax's ``he_normal``.

    Returns:
      Constructors of both.
    """
    conv = functools.partial(
        nn.Conv,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, fan, "normal"),
    )
    norm = functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
    )
    return conv, norm


class Block(nn.Module):
    """conv - BN - relu - conv - BN, added to the shortcut, then relu.

    Attributes:
      features: output channels.
      stride: stride of the first convolution and of the shortcut.
      layers: returns constructors of the convolution and of the normalisation.
    """

    features: int
    stride: int
    layers: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = self.layers(train=train)
        strides = (self.stride, self.stride)
        y = conv(self.features, (3, 3), strides, name="conv_1")(x)
        y = nn.relu(norm(name="norm_1")(y))
        y = conv(self.features, (3, 3), name="conv_2")(y)
        y = norm(name="norm_2")(y)
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), strides, name="conv_shortcut")(x)
            x = norm(name="norm_shortcut")(x)
        return nn.relu(x + y)
