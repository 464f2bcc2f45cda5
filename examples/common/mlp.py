"""A multilayer perceptron, in Flax linen."""

from typing import Any

import flax.linen as nn
import jax


class MLP(nn.Module):
    """Hidden layers with Batch Normalization, and a linear head.

    Attributes:
      layers: number of hidden layers.
      width: width of each hidden layer.
      classes: number of classes.
      momentum: momentum of the running statistics; None omits Batch Normalization.
      dtype: dtype of the computation, with float32 parameters; None takes the dtype of
        the parameters and images.
    """

    layers: int
    width: int
    classes: int
    momentum: float | None = 0.99
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        """Return logits (n, classes) of images (n, height, width, channels)."""
        x = images.reshape(len(images), -1)
        init = nn.initializers.he_normal()
        plain = self.momentum is None
        for index in range(1, self.layers + 1):
            name = f"hidden_{index}"
            dense = nn.Dense(
                self.width, plain, dtype=self.dtype, kernel_init=init, name=name
            )
            x = dense(x)
            if self.momentum is not None:
                norm = f"norm_{index}"
                x = nn.BatchNorm(
                    not train, momentum=self.momentum, dtype=self.dtype, name=norm
                )(x)
            x = nn.relu(x)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x)
