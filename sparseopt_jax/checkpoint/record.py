"""The record of a checkpoint, which distinguishes the checkpoints of several runs."""

import dataclasses
import json
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sparseopt_jax.arrays.checksum import checksum
from sparseopt_jax.checkpoint import stored_leaves
from sparseopt_jax.checkpoint.described import (
    Difference,
    compare,
    describe,
    named_fields,
)
from sparseopt_jax.checkpoint.optimizer_record import optimizer_differences
from sparseopt_jax.masks.state import get_masks, is_sparse_state
from sparseopt_jax.topologies.base import Topology
from sparseopt_jax.trees import paths

# The version that is written. Increase it when the meaning of a name changes.
VERSION = 2

_SHOWN = 20
_HALVES = {"float64[]": np.float32, "complex128[]": np.complex64}


def begin(
    step: int,
    leaves: Mapping[str, Any],
    topology: dict[str, Any] | None,
    optimizer: dict[str, Any] | None,
    data: Any,
) -> dict[str, Any]:
    """Return the part of a record that does not depend on the values of arrays.

    Args:
      step: number of the step.
      leaves: the leaves of the state by path.
      topology: the result of ``describe_topology``, or None.
      optimizer: the result of ``describe_optimizer``, or None.
      data: the position in the input data.

    Returns:
      The first part of a record; ``sums`` is the second.

    Raises:
      ValueError: if ``data`` is not JSON.
    """
    return {
        "version": VERSION,
        "step": step,
        "leaves": stored_leaves.kinds(leaves),
        "topology": topology,
        "optimizer": optimizer,
        "data": _as_json(data),
    }


def sums(state: Any, stored: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Return the part of a record about arrays; all processes must call this together.

    Args:
      state: any pytree.
      stored: the arrays that are written for it.

    Returns:
      Checksums by path, and numbers of active weights.
    """
    return {"checksums": checksums(stored), "active": _active(state)}


def finish(record: dict[str, Any]) -> dict[str, Any]:
    """Return the complete record, to be read by ``checked``."""
    return record | {"crc32": _crc32(record)}


def checked(record: Any) -> dict[str, Any]:
    """Return the record if its checksum is right.

    Raises:
      ValueError: if it is not.
    """
    record = dict(record)
    if record.pop("crc32", None) != _crc32(record):
        raise ValueError("Its record has been changed.")
    return record


def check_version(record: Mapping[str, Any]) -> None:
    """Raise ValueError if this version of the library cannot read the record."""
    version = record.get("version")
    if version is None:
        raise ValueError(
            "its record has no version, as in checkpoints from before the first "
            "release: restore it with the code that wrote it"
        )
    if version > VERSION:
        raise ValueError(
            f"its record has version {version}, which a later version of "
            f"sparseopt_jax wrote; this one reads versions up to {VERSION}: pip "
            "install --upgrade sparseopt_jax"
        )


class Differences(NamedTuple):
    """The differences between a checkpoint and a run.

    Attributes:
      lines: one for each difference, with both values.
      not_compared: the same for settings that cannot be compared.
    """

    lines: list[str]
    not_compared: list[str]


def differences(
    record: Mapping[str, Any],
    state: Any,
    leaves: Mapping[str, Any],
    topology: Mapping[str, Any] | None,
    optimizer: Mapping[str, Any] | None,
) -> Differences:
    """Find the differences that prevent a checkpoint from replacing a state.

    Args:
      record: the checkpoint's record.
      state: the state to replace.
      leaves: its leaves by path.
      topology: the result of ``describe_topology``, or None to skip it.
      optimizer: the result of ``describe_optimizer``, or None to skip it.

    Returns:
      The differences.
    """
    given, saved = stored_leaves.kinds(leaves), record["leaves"]
    other = {
        path: kind
        for path, kind in saved.items()
        if path in given and not stored_leaves.is_same(kind, given[path])
    }
    # Numbers of active weights that change by design do not tell runs apart.
    keeps_counts = all(
        (described or {}).get("keeps_counts", True)
        for described in (record["topology"], topology)
    )
    of_topology = _topology_differences(record["topology"], topology)
    of_optimizer = optimizer_differences(record["optimizer"], optimizer)
    # Other libraries may rename the variables in their functions.
    unsaid = [part for part in of_optimizer if part.kind != "differs"]
    unsaid += [part for part in of_topology if part.kind == "unknown"]
    said = [part for part in (*of_topology, *of_optimizer) if part not in unsaid]
    lines = [
        *map(str, said),
        *(
            _changed(record["active"], _active(state), "active weights of {}")
            if keeps_counts
            else ()
        ),
        *_changed(other, given),
        *(f"{path}: only in the checkpoint" for path in saved if path not in given),
        *(f"{path}: only in this run" for path in given if path not in saved),
    ]
    return Differences(lines, list(map(str, unsaid)))


def _topology_differences(saved: Any, given: Any) -> list[Difference]:
    if saved is None or given is None:
        return []
    return [
        difference._replace(
            name=f"topology, {difference.name.removeprefix('schedule.')}"
        )
        for difference in compare("", saved, given)
        if _SHOWN_BY_MASKS not in (difference.saved, difference.given)
    ]


def checksums(stored: Mapping[str, Any]) -> dict[str, int]:
    """Return the checksum of every array, by path."""
    found = {path: checksum(x) for path, x in stored.items()}
    return {path: int(x) for path, x in jax.device_get(found).items()}


def changed_arrays(record: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Return the paths of the arrays that are not those of a checkpoint's record."""
    saved, found = record["checksums"], checksums(stored)
    changed = [path for path in found if found[path] != saved[path]]
    if record["version"] > 1:
        return changed
    # Version 1 stored some of NumPy's scalars with half of the bits in the record.
    halves = {
        path: np.asarray(stored[path], _HALVES[kind])
        for path in changed
        if (kind := record["leaves"][path]) in _HALVES
    }
    found = checksums(halves)
    return [path for path in changed if found.get(path) != saved[path]]


def _active(state: Any) -> dict[str, int]:
    """Count the active weights of every mask in a state, by the mask's path."""
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


# Replaces given masks, and functions that decide about leaves: the masks in the state
# show their effect.
_SHOWN_BY_MASKS = "as the masks show"
_DECIDE = ("where", "include", "distribution", "dims")


def describe_topology(topology: Topology) -> dict[str, Any]:
    """Describe a topology as JSON.

    Given masks are not described, nor are functions that decide about leaves
    (``where``, a distribution): the masks show their effect. Other functions are
    described by their names, closures and code.

    Args:
      topology: any topology.

    Returns:
      Its method, and its settings by name.
    """
    return _as_json(
        {"method": topology.name}
        | _settings(topology)
        | {"keeps_counts": topology.keeps_counts}
    )


def _settings(topology: Topology) -> dict[str, Any]:
    if dataclasses.is_dataclass(topology):
        kind, fields = named_fields(topology)
    else:
        kind, fields = type(topology).__name__, vars(topology)
    return {"is": kind} | {name: _setting(name, x) for name, x in fields.items()}


def _setting(name: str, value: Any) -> Any:
    if isinstance(value, Topology):
        return _settings(value)
    if isinstance(value, tuple | list):
        return [_setting(name, x) for x in value]
    is_given = name == "masks" and not (value is None or isinstance(value, str))
    if is_given or (name in _DECIDE and callable(value)):
        return _SHOWN_BY_MASKS
    return describe(value)


def _as_json(data: Any) -> Any:
    """Return the data in the form in which JSON reads it back."""
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
        f"{label.format(key)}: {value} in the checkpoint, {given[key]} in this run"
        for key, value in saved.items()
        if key in given and value != given[key]
    ]


def listed(names: list[str], separator: str = ", ") -> str:
    """Join the first names, and add the number of the others."""
    more = len(names) - _SHOWN
    shown = [*names[:_SHOWN], f"and {more} more"] if more > 0 else names
    return separator.join(shown)
