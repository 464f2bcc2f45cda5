"""What residual networks are made of, in Flax linen."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax


def conv_and_norm(dtype: Any, train: bool, fan: Literal["fan_in", "fan_out"]):
    """The convolution and the normalisation that all of a network is made of.

    Parameters and running statistics are float32 whatever is computed in.

    Args:
      dtype: type that everything is computed in.
      train: whether batches are normalised by their own statistics.
      fan: what Kaiming's initial variance is divided by, ``"fan_in"`` or ``"fan_out"``;
        the he_normal of Flax cuts the tails off.

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
      features: channels of the output.
      stride: of the first convolution, and of the shortcut.
      layers: makes constructors of the convolution and of the normalisation.
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
