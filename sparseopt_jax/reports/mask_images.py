"""Masks as images and animations; ``sparseopt_jax.plot`` exports these functions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from PIL import Image

from sparseopt_jax.layers.neurons import Dims, one_neuron, resolve_axes
from sparseopt_jax.masks.packing import unpack
from sparseopt_jax.masks.state import check_masks, find_states, get_masks
from sparseopt_jax.reports import figure_style as style
from sparseopt_jax.trees import paths

# By code: the place in this table.
_COLORS = {
    "inactive": style.WHITE,
    "active": style.GREY,
    "grown": style.BLUE,
    "dropped": style.LIGHT_ORANGE,
}
_INACTIVE, _ACTIVE, _GROWN, _DROPPED = range(4)


def masks(
    opt_state: Any,
    path: str,
    previous: Any = None,
    *,
    dims: Dims = None,
    copy: int = 0,
) -> Figure:
    """Draw one layer's mask as an image, inputs by neurons, and what has changed.

    Args:
      opt_state: an optimizer state that holds masks, or a tree of masks.
      path: the leaf's canonical path, such as ``"Dense_0/kernel"``.
      previous: an earlier state or tree of masks; weights grown or dropped since then
        are coloured.
      dims: the axes of kernels that do not follow the Flax convention.
      copy: which layer of a stack to show, in the order of its stack axes.

    Returns:
      A figure with one axes that holds one image, (inputs, neurons): 0 inactive, 1
      active, 2 grown, 3 dropped.

    Raises:
      ValueError: if there are no masks, no mask at ``path``, no neurons in it, or no
        such copy; if ``previous`` has a different shape there.

    Examples:
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> before = {"kernel": jnp.array([[True, True], [False, False]])}
      >>> after = {"kernel": jnp.array([[True, False], [True, False]])}
      >>> figure = so.plot.masks(after, "kernel", before)
      >>> print(figure.axes[0].images[0].get_array())
      [[1 3]
       [2 0]]
    """
    now = _flat_mask(opt_state, path, dims, copy)
    old = None if previous is None else _flat_mask(previous, path, dims, copy)
    figure, _ = _mask_figure(_changes(now, old, path), path, old is not None)
    return figure


def animate_masks(
    frames: Sequence[Any],
    path: str,
    file: str | Path,
    *,
    dims: Dims = None,
    copy: int = 0,
    titles: Sequence[str] | None = None,
    milliseconds: int = 200,
) -> Path:
    """Write one layer's moving mask as an animated GIF.

    Args:
      frames: optimizer states or trees of masks in temporal order; each is compared
        with the one before. If states are donated, keep copies on the host:
        ``jax.device_get(so.get_masks(opt_state))``.
      path: the leaf's canonical path.
      file: where to write, ``.gif``.
      dims: as in ``masks``.
      copy: as in ``masks``.
      titles: a title per frame; frames are numbered by default.
      milliseconds: how long each frame is shown; the last is shown four times as long.

    Returns:
      The path of the file.

    Raises:
      ValueError: as ``masks``; if there are no frames, or titles differ in number.

    Examples:
      >>> import pathlib, tempfile
      >>> import jax.numpy as jnp
      >>> import sparseopt_jax as so
      >>> frames = [{"kernel": jnp.eye(4) > 0}, {"kernel": jnp.eye(4)[::-1] > 0}]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = so.plot.animate_masks(frames, "kernel", f"{folder}/masks.gif")
      ...     file.read_bytes()[:3]
      b'GIF'
    """
    if not frames:
        raise ValueError("frames must hold at least one tree of masks, got none")
    if titles is None:
        titles = [f"{path}, {i + 1} of {len(frames)}" for i in range(len(frames))]
    if len(titles) != len(frames):
        raise ValueError(f"titles must be as many as frames, {len(frames)}: {titles!r}")
    shown = [_flat_mask(frame, path, dims, copy) for frame in frames]
    codes = [
        _changes(now, old, path)
        for now, old in zip(shown, [None, *shown], strict=False)
    ]
    figure, image = _mask_figure(codes[0], path, legend=True, counts=False)
    canvas = FigureCanvasAgg(figure)
    shots = []
    for code, title in zip(codes, titles, strict=True):
        image.set_data(code)
        figure.axes[0].set_title(title, fontsize=10)
        canvas.draw()
        shots.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    # One palette for all frames, from the busiest one, so that nothing flickers.
    fullest = int(np.argmax([np.count_nonzero(code > _ACTIVE) for code in codes]))
    palette = shots[fullest].quantize(32, dither=Image.Dither.NONE)
    pages = [shot.quantize(palette=palette, dither=Image.Dither.NONE) for shot in shots]
    pages[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pages[1:],
        duration=[milliseconds] * (len(pages) - 1) + [4 * milliseconds],
        loop=0,
        optimize=True,
    )
    return Path(file)


def _flat_mask(source: Any, path: str, dims: Dims, copy: int) -> np.ndarray:
    """Return one layer's mask, (inputs, neurons)."""
    tree = get_masks(source) if find_states(source) else unpack(source)
    check_masks(tree)
    by_path = paths.leaves_by_path(tree)
    if path not in by_path:
        raise ValueError(
            f"no mask at {path!r}; there are {', '.join(by_path) or 'none'}"
        )
    mask = np.asarray(by_path[path])
    axes = resolve_axes(dims, path, mask) or one_neuron(mask)
    batch, inputs, neurons = ([mask.shape[axis] for axis in group] for group in axes)
    stack = mask.transpose(sum(axes, ())).reshape(
        *(np.prod(sizes, dtype=int) for sizes in (batch, inputs, neurons))
    )
    if not 0 <= copy < len(stack):
        raise ValueError(f"copy must be in [0, {len(stack)}) at {path!r}, got {copy}")
    return stack[copy]


def _changes(now: np.ndarray, old: np.ndarray | None, path: str) -> np.ndarray:
    """Return a code per weight, uint8, in the mask's shape."""
    if old is None:
        return now.astype(np.uint8)
    if now.shape != old.shape:
        raise ValueError(
            f"the mask at {path!r} was {old.shape} before, inputs by neurons, and is "
            f"{now.shape} now"
        )
    codes = np.select([now & old, now, old], [_ACTIVE, _GROWN, _DROPPED], _INACTIVE)
    return codes.astype(np.uint8)


def _mask_figure(
    codes: np.ndarray, title: str, legend: bool, counts: bool = True
) -> tuple[Figure, AxesImage]:
    """Return a figure of one image, sized by its inputs and neurons."""
    ratio = codes.shape[0] / max(1, codes.shape[1])
    square = 1 / 3 <= ratio <= 3
    height, width = (5, 5 / ratio) if ratio > 1 else (5 * ratio, 5)
    figure = Figure(
        figsize=(max(width, 3.5) + 0.8, max(height, 1.8) + 1.2), layout="constrained"
    )
    axes: Any = figure.subplots()
    image = axes.imshow(
        codes,
        cmap=ListedColormap(list(_COLORS.values())),
        vmin=-0.5,
        vmax=len(_COLORS) - 0.5,
        aspect="equal" if square else "auto",
        # Masks with more entries than pixels are averaged, in colours and not in codes.
        interpolation="nearest" if max(codes.shape) <= 512 else None,
        interpolation_stage="rgba",
    )
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="neuron", ylabel="input")
    kinds = range(len(_COLORS) if legend else _GROWN)
    handles = []
    for kind, (name, color) in zip(kinds, _COLORS.items(), strict=False):
        label = f"{name}: {np.count_nonzero(codes == kind):,}" if counts else name
        handles.append(Patch(facecolor=color, edgecolor=style.DARK_GREY, label=label))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if counts and legend else 4,
        frameon=False,
        fontsize=8,
    )
    return figure, image
