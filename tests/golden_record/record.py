"""What trainings are compared by.

``tests/golden_record/`` has three parts, each by variant of training:

- ``masks.json``: hashes of the masks of all steps up to 10, 20 and 30. Masks are the
  same for every storage, jax version, XLA flag and CPU.
- ``floats.json``: the updates and the parameters at those steps, each as one positive
  number that depends on every entry, compared up to rounding, which varies between
  machines.
- ``state.json``: the paths, types and shapes of the state's leaves with their values:
  hashes of integers and bits, numbers as above for floats. A deliberate change of the
  state's layout affects only this part.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.golden_record.variants import STEPS, VARIANTS, train

FOLDER = Path(__file__).resolve().parent
PARTS = ("masks", "floats", "state")
MOMENTS = (10, 20, STEPS)

# Without fused multiply-add all bits are equal; with it, numbers change by about 1e-7.
ROUNDING = 2e-6


def leaves_of(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield path and value of every leaf."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf)


def type_of(leaf: np.ndarray) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def hash_of(tree: Any, before: str = "") -> str:
    """Return a hash of all leaves of a tree, and of the hash ``before``."""
    found = hashlib.sha256(before.encode())
    for path, leaf in leaves_of(tree):
        found.update(f"{path} {type_of(leaf)}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()[:12]


def number_of(tree: Any) -> str:
    """Return a number whose relative change is as small as that of the tree's floats.

    Each entry's magnitude is weighted by its own factor, a different one for each sign.
    """
    values = [leaf.ravel().astype(np.float64) for _, leaf in leaves_of(tree)]
    flat = np.concatenate(values) if values else np.zeros(0)
    place = np.arange(1, flat.size + 1)
    factors = np.where(flat > 0, place * 0.6180339887, place * 0.4142135624) % 1.0
    return f"{np.sum((1.0 + factors) * np.abs(flat)):.9g}"


def is_float(leaf: np.ndarray) -> bool:
    return np.issubdtype(leaf.dtype, np.floating)


def record(name: str) -> dict[str, Any]:
    """Train a variant; return its entry in each part of the record."""
    masks_hash, masks = "", []
    floats: dict[str, list[str]] = {"updates": [], "params": []}
    state: dict[str, str] = {}
    for count, moment in enumerate(train(VARIANTS[name]), 1):
        masks_hash = hash_of(moment.masks, masks_hash)
        if count not in MOMENTS:
            continue
        masks.append(masks_hash)
        floats["updates"].append(number_of(moment.updates))
        floats["params"].append(number_of(moment.params))
        for path, leaf in leaves_of(moment.state):
            value = number_of(leaf) if is_float(leaf) else hash_of(leaf)[:6]
            state[path] = f"{state.get(path, type_of(leaf))} {value}"
    return {
        "masks": " ".join(masks),
        "floats": {part: " ".join(numbers) for part, numbers in floats.items()},
        "state": state,
    }


def bits(name: str) -> dict[str, str]:
    """Train a variant; return hashes of every leaf at all steps up to each moment."""
    hashes: dict[str, str] = {}
    found: dict[str, str] = {}
    for count, moment in enumerate(train(VARIANTS[name]), 1):
        for part in ("masks", "updates", "params", "state"):
            for path, leaf in leaves_of(getattr(moment, part)):
                path = f"{part}: {path}"
                hashes[path] = hash_of(leaf, hashes.get(path, ""))
                if count in MOMENTS:
                    before = found.get(path, type_of(leaf))
                    found[path] = f"{before} {hashes[path]}"
    return found


def differences(expected: Any, actual: Any, rounding: float = 0.0) -> list[str]:
    """Return a line for each thing that differs between two records.

    Args:
      expected: nested dictionaries of strings.
      actual: the same.
      rounding: how far numbers may be apart, relatively.
    """
    if not isinstance(expected, dict):
        if _same(expected, actual, rounding):
            return []
        return [f": {expected} became {actual}"]
    lines = []
    for name in sorted(expected.keys() | actual.keys()):
        if name not in actual:
            lines.append(f" {name} is gone")
        elif name not in expected:
            lines.append(f" {name} is new")
        else:
            below = differences(expected[name], actual[name], rounding)
            lines += [f" {name}{line}" for line in below]
    return lines


def _same(expected: str, actual: str, rounding: float) -> bool:
    olds, news = expected.split(), actual.split()
    return len(olds) == len(news) and all(
        old == new or _close(old, new, rounding)
        for old, new in zip(olds, news, strict=True)
    )


def _close(old: str, new: str, rounding: float) -> bool:
    # Hashes are compared with a rounding only if they differ: to be accepted, one that
    # looks like a number, such as 1234e5, would have to be close to another.
    try:
        a, b = float(old), float(new)
    except ValueError:
        return False
    return abs(a - b) <= rounding * max(abs(a), abs(b))


def stored() -> dict[str, dict[str, Any]]:
    """Return the stored record: by part, by variant."""
    return {part: json.loads(_file(part).read_text()) for part in PARTS}


def store(entries: dict[str, dict[str, Any]]) -> None:
    """Write the entries of these variants, and drop those of unknown ones."""
    for part in PARTS:
        file = _file(part)
        kept = json.loads(file.read_text()) if file.exists() else {}
        kept |= {name: entry[part] for name, entry in entries.items()}
        kept = {name: kept[name] for name in VARIANTS if name in kept}
        file.write_text(json.dumps(kept, indent=1) + "\n")


def _file(part: str) -> Path:
    return FOLDER / f"{part}.json"
