"""What residual networks are made of, in Flax linen."""

import functools
from typing import Any, Literal

import flax.linen as nn


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
