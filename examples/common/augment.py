"""Random crops and flips of small images, on the device, inside the compiled step."""

from typing import Literal

import jax
import jax.numpy as jnp

Padding = Literal["zeros", "mirror"]


def augmented(
    key: jax.Array, images: jax.Array, *, margin: int, padding: Padding, flip: bool
) -> jax.Array:
    """A random crop of every image with a margin around it, mirrored at random.

    Decided by the key alone, so that a step that is taken again sees the same.

    Args:
      key: typed PRNG key.
      images: uint8 (n, size, size, channels).
      margin: pixels that are put around an image before it is cropped.
      padding: what is put there.
      flip: whether half of the images are mirrored.

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
    """A part, as large as the image, of every image with a margin around it.

    Args:
      images: (n, size, size, channels).
      corners: int (n, 2), row and column where the part begins, from 0 to twice the
        margin; at the margin itself it is the image.
      margin: pixels around an image.
      padding: ``"zeros"``, or ``"mirror"`` for the image reflected at its edge, which
        is repeated.

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
    """Some of the images with left and right exchanged.

    Args:
      images: (n, size, size, channels).
      which: bool (n,), the images to mirror.

    Returns:
      (n, size, size, channels).
    """
    return jnp.where(which[:, None, None, None], images[:, :, ::-1], images)
