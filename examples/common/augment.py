"""Random crops and flips of small images, on device, inside the compiled step."""

from typing import Literal

import jax
import jax.numpy as jnp

Padding = Literal["zeros", "mirror"]


def augmented(
    key: jax.Array, images: jax.Array, *, margin: int, padding: Padding, flip: bool
) -> jax.Array:
    """Pad, randomly crop and randomly mirror each image.

    The key alone decides the result, so a step that is repeated sees the same images.

    Args:
      key: typed PRNG key.
      images: uint8 (n, size, size, channels).
      margin: pixels of padding on each side before cropping.
      padding: how the padding is filled.
      flip: whether to mirror half of the images.

    Returns:
      uint8 (n, size, size, channels).
    """
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * margin + 1)
    images = cropped(images, corners, margin=margin, padding=padding)
    if flip:
        images = mirrored(images, jax.random.bernoulli(flip_key, shape=(len(images),)))
    return images


def cropped(
    images: jax.Array, corners: jax.Array, *, margin: int, padding: Padding
) -> jax.Array:
    """Pad each image and crop it to its original size at a given corner.

    Args:
      images: (n, size, size, channels).
      corners: int (n, 2), row and column at which the crop starts, from 0 to twice
        ``margin``; ``(margin, margin)`` returns the image unchanged.
      margin: pixels of padding on each side.
      padding: ``"zeros"``, or ``"mirror"`` for the image reflected at its edge,
        including the edge pixels.

    Returns:
      (n, size, size, channels).
    """
    if margin == 0:
        return images
    around = [(0, 0), (margin, margin), (margin, margin), (0, 0)]
    mode = {"zeros": "constant", "mirror": "symmetric"}[padding]
    padded = jnp.pad(images, around, mode=mode)

    def part(image, corner):
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    return jax.vmap(part)(padded, corners)


def mirrored(images: jax.Array, which: jax.Array) -> jax.Array:
    """Mirror the selected images horizontally.

    Args:
      images: (n, size, size, channels).
      which: bool (n,), the images to mirror.

    Returns:
      (n, size, size, channels).
    """
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)
