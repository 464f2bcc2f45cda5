"""What a checkpoint says about itself, so that another run's is not taken for it."""

import dataclasses
import functools
import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax import paths
from sparseopt_jax.checksum import checksum
from sparseopt_jax.masks import get_masks, is_sparse_state
from sparseopt_jax.schedules import DensitySchedule, StepList, UpdateSchedule
from sparseopt_jax.topology import Topology

_SHOWN = 20


def make(
    state: Any,
    leaves: Mapping[str, Any],
    stored: Mapping[str, Any],
    topology: dict[str, Any] | None,
    data: Any,
) -> dict[str, Any]:
    """The record of a state, as JSON has it.

    Args:
      state: any pytree.
      leaves: its leaves by path.
      stored: the arrays that are written for them.
      topology: as ``describe_topology`` gives it, or None.
      data: where the input stands.

    Returns:
      A dictionary that ``checked`` takes again.

    Raises:
      ValueError: if ``data`` is not JSON.
    """
    record = {
        "leaves": _kinds(leaves),
        "checksums": checksums(stored),
        "active": _active(state),
        "topology": topology,
        "data": _as_json(data),
    }
    return record | {"crc32": _crc32(record)}


def checked(record: Any) -> dict[str, Any]:
    """The record, if it is whole.

    Raises:
      ValueError: if not.
    """
    record = dict(record)
    if record.pop("crc32", None) != _crc32(record):
        raise ValueError("Its record has been changed.")
    return record


def differences(
    record: Mapping[str, Any],
    state: Any,
    leaves: Mapping[str, Any],
    topology: Mapping[str, Any] | None,
) -> list[str]:
    """What keeps a checkpoint from being loaded in the place of a state.

    Args:
      record: the checkpoint's.
      state: what it is to replace.
      leaves: its leaves by path.
      topology: as ``describe_topology`` gives it, or None to leave it out.

    Returns:
      One line for each difference, with both values.
    """
    saved, given = record["leaves"], _kinds(leaves)
    saved = {path: _as_given(kind, given.get(path)) for path, kind in saved.items()}
    # Where numbers of active weights change by design, they tell no runs apart.
    keeps_counts = all(
        (own or {}).get("keeps_counts", True) for own in (record["topology"], topology)
    )
    return [
        *_changed(record["topology"] or {}, topology or {}, "topology, {}"),
        *_changed(
            record["active"] if keeps_counts else {},
            *(_active(state), "active weights of {}"),
        ),
        *_changed(saved, given),
        *(f"{path}: only in the checkpoint" for path in saved if path not in given),
        *(f"{path}: only in this run" for path in given if path not in saved),
    ]


def _kinds(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Type and shape of every leaf, such as ``float32[4,8]``."""

    def describe(leaf):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"

    return {path: describe(leaf) for path, leaf in leaves.items()}


# Keys as they are named where typed, and their data: states held typed keys once.
_KEY_DATA = {
    "key<fry>[]": "uint32[2]",
    "key<rbg>[]": "uint32[4]",
    "key<urbg>[]": "uint32[4]",
}


def _as_given(saved: str, given: str | None) -> str | None:
    """What was saved, as the run has it where that differs in how a key is held."""
    return given if given is not None and _KEY_DATA.get(saved) == given else saved


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
    distribution): what they decide shows in the masks. Others are told by their names.

    Args:
      topology: any topology.

    Returns:
      Its method, and its settings by name.
    """
    described = _fields(topology)
    if isinstance(topology, Topology):
        described |= described.pop("schedule") or {}
    return _as_json(
        {"method": topology.name} | described | {"keeps_counts": topology.keeps_counts}
    )


_PARTS = (Topology, UpdateSchedule, StepList, DensitySchedule)


def _fields(value: Any) -> dict[str, Any]:
    fields = {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value)
    }
    decided = {
        name
        for name, own in fields.items()
        if name in ("masks", "name")
        or (name in ("where", "distribution", "dims") and callable(own))
    }
    return {name: _plain(own) for name, own in fields.items() if name not in decided}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, _PARTS):
        return _fields(value)
    if dataclasses.is_dataclass(value):
        return repr(value)
    if isinstance(value, tuple | list):
        return [_plain(own) for own in value]
    if isinstance(value, functools.partial):
        return [_plain(value.func), *map(_plain, value.args)]
    if callable(value):
        # Not its address, which another process has not.
        return getattr(value, "__qualname__", None)
    return value.item() if isinstance(value, np.generic) else value


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
        f"{label.format(name)}: {value} in the checkpoint, {given[name]} in this run"
        for name, value in saved.items()
        if name in given and given[name] != value
    ]


def listed(names: list[str], separator: str = ", ") -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - _SHOWN
    shown = [*names[:_SHOWN], f"and {more} more"] if more > 0 else names
    return separator.join(shown)
