"""What a checkpoint says about itself, so that another run's is not taken for it."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.arrays.checksum import checksum
from sparseopt_jax.checkpoint.described import UNKNOWN, describe, unlike
from sparseopt_jax.checkpoint.optimizer_record import optimizer_differences
from sparseopt_jax.masks.state import get_masks, is_sparse_state
from sparseopt_jax.topologies.rewiring import Rewiring
from sparseopt_jax.topologies.schedules import DensitySchedule, StepList, UpdateSchedule
from sparseopt_jax.trees import paths

# What this version writes. Format 1, which had no number, knew nothing of the optimizer
# and the step, and wrote leaves under their paths.
FORMAT = 2

_SHOWN = 20
# Keys were once kept as typed ones, whose data has so many words.
_WORDS = {"fry": 2, "rbg": 4, "urbg": 4}


def begin(
    step: int,
    leaves: Mapping[str, Any],
    topology: dict[str, Any] | None,
    optimizer: dict[str, Any] | None,
    data: Any,
) -> dict[str, Any]:
    """The part of a record that is known without a look at any array.

    Args:
      step: its number.
      leaves: the leaves of the state by path.
      topology: as ``describe_topology`` gives it, or None.
      optimizer: as ``describe_optimizer`` gives it, or None.
      data: where the input stands.

    Returns:
      What ``finish`` takes.

    Raises:
      ValueError: if ``data`` is not JSON.
    """
    return {
        "format": FORMAT,
        "step": step,
        "leaves": _kinds(leaves),
        "topology": topology,
        "optimizer": optimizer,
        "data": _as_json(data),
    }


def sums(state: Any, stored: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """What a record says of the arrays: with several processes all have to ask for it.

    Args:
      state: any pytree.
      stored: the arrays that are written for it.

    Returns:
      Checksums by path, and numbers of active weights.
    """
    return {"checksums": checksums(stored), "active": _active(state)}


def finish(record: dict[str, Any]) -> dict[str, Any]:
    """The whole record, which ``checked`` takes again."""
    return record | {"crc32": _crc32(record)}


def checked(record: Any) -> dict[str, Any]:
    """The record, if it is whole.

    Raises:
      ValueError: if not.
    """
    record = dict(record)
    if record.pop("crc32", None) != _crc32(record):
        raise ValueError("Its record has been changed.")
    return {"format": 1, "optimizer": None} | record


def check_format(record: Mapping[str, Any]) -> None:
    """Raises ValueError if a later version of the library wrote the record."""
    if record["format"] > FORMAT:
        raise ValueError(
            f"it has format {record['format']}, which a later version of sparseopt_jax "
            f"wrote; this one reads formats up to {FORMAT}: pip install --upgrade "
            "sparseopt_jax"
        )


def differences(
    record: Mapping[str, Any],
    state: Any,
    leaves: Mapping[str, Any],
    topology: Mapping[str, Any] | None,
    optimizer: Mapping[str, Any] | None,
) -> list[str]:
    """What keeps a checkpoint from being loaded in the place of a state.

    Args:
      record: the checkpoint's.
      state: what it is to replace.
      leaves: its leaves by path.
      topology: as ``describe_topology`` gives it, or None to leave it out.
      optimizer: as ``describe_optimizer`` gives it, or None to leave it out.

    Returns:
      One line for each difference, with both values.
    """
    given = _kinds(leaves)
    saved = {
        path: _as_data(kind, given.get(path)) for path, kind in record["leaves"].items()
    }
    # Where numbers of active weights change by design, they tell no runs apart.
    keeps_counts = all(
        (described or {}).get("keeps_counts", True)
        for described in (record["topology"], topology)
    )
    return [
        *_changed(record["topology"] or {}, topology or {}, "topology, {}"),
        *optimizer_differences(record["optimizer"], optimizer),
        *_changed(
            record["active"] if keeps_counts else {},
            *(_active(state), "active weights of {}"),
        ),
        *_changed(saved, given),
        *(f"{path}: only in the checkpoint" for path in saved if path not in given),
        *(
            f"{path}: only in this run"
            for path in given
            if path not in saved and not is_told_by_run(path, saved)
        ),
    ]


def is_told_by_run(path: str, saved: Mapping[str, Any]) -> bool:
    """Whether a leaf is the run's to tell where a checkpoint lacks it.

    The layouts of a compact state, which states once kept beside their leaves alone.
    """
    *parents, name = path.split("/")
    beside = "/".join((*parents, "tree", ""))
    return name == "layout_text" and any(other.startswith(beside) for other in saved)


def _as_data(kind: str, given: str | None) -> str:
    """The kind of the data in a typed key, where that is what is asked for."""
    name, _, shape = kind.partition("[")
    impl = name.removeprefix("key<").removesuffix(">")
    if impl == name or impl not in _WORDS or (given or "key").startswith("key"):
        return kind
    axes = [*filter(None, shape.removesuffix("]").split(",")), str(_WORDS[impl])]
    return f"uint32[{','.join(axes)}]"


def _kinds(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of every leaf, such as ``float32[4,8]``."""

    def describe(leaf):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"

    return {path: describe(leaf) for path, leaf in leaves.items()}


def checksums(stored: Mapping[str, Any]) -> dict[str, int]:
    """The checksum of every array, by path."""
    found = {path: checksum(x) for path, x in stored.items()}
    return {path: int(x) for path, x in jax.device_get(found).items()}


def _active(state: Any) -> dict[str, int]:
    """The active weights of every mask in a state, by the mask's path."""
    counts = {}
    for key_path, node in paths.leaves_with_path(state, is_leaf=is_sparse_state):
        parts = paths.path_parts(key_path)
        if is_sparse_state(node):
            masks = paths.flatten_with_paths(get_masks(node))
            found = {"/".join((*parts, "masks", path)): mask for path, mask in masks}
        elif "masks" in parts:
            # An `nnx.State` keeps the names of a state's parts, but not its class.
            found = {"/".join(parts): node}
        else:
            continue
        counts |= {
            path: jnp.sum(mask, dtype=jnp.int32)
            for path, mask in found.items()
            if isinstance(mask, jax.Array | np.ndarray) and mask.dtype == np.bool_
        }
    return {path: int(x) for path, x in jax.device_get(counts).items()}


def describe_topology(topology: Any) -> dict[str, Any]:
    """What a topology is, as JSON has it.

    Given masks are left out, and functions that decide about leaves (``where``, a
    distribution): what they decide shows in the masks. Others are told by their names,
    by what they hold, and by their code.

    Args:
      topology: any topology.

    Returns:
      Its method, and its settings by name.
    """
    described = _fields(topology)
    if isinstance(topology, Rewiring):
        described |= described.pop("schedule") or {}
    return _as_json(
        {"method": topology.name} | described | {"keeps_counts": topology.keeps_counts}
    )


_PARTS = (Rewiring, UpdateSchedule, StepList, DensitySchedule)


def _fields(value: Any) -> dict[str, Any]:
    fields = {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value)
    }
    decided = {
        name
        for name, setting in fields.items()
        if name in ("masks", "name")
        or (name in ("where", "include", "distribution", "dims") and callable(setting))
    }
    described = {
        name: _setting(setting)
        for name, setting in fields.items()
        if name not in decided
    }
    return {name: x for name, x in described.items() if x is not UNKNOWN}


def _setting(value: Any) -> Any:
    if isinstance(value, _PARTS):
        return _fields(value)
    if isinstance(value, tuple | list):
        return [_setting(x) for x in value]
    return describe(value)


def _as_json(data: Any) -> Any:
    """The data as it will be read again."""
    try:
        return json.loads(json.dumps(data))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"data must be plain numbers, strings, lists and dictionaries: {error}"
        ) from None


def _crc32(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _changed(
    saved: Mapping[str, Any], given: Mapping[str, Any], label: str = "{}"
) -> list[str]:
    return [
        f"{label.format(name)}: {value} in the checkpoint, {other} in this run"
        for key in saved
        if key in given
        for name, value, other in unlike(key, saved[key], given[key])
    ]


def listed(names: list[str], separator: str = ", ") -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - _SHOWN
    shown = [*names[:_SHOWN], f"and {more} more"] if more > 0 else names
    return separator.join(shown)
