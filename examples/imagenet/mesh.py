"""Processes, and the mesh of all their devices, over which arrays are placed.

A mesh has two axes. Batches are split over both. Parameters are copied along ``data``
and split along ``fsdp``: each device there holds a part of every kernel, and of its
mask and momentum.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Processes:
    """How the processes of a run find each other.

    Attributes:
      distributed: Several processes make up this run. On a TPU pod, with Slurm, Open
        MPI or Kubernetes they find each other; anywhere else pass the next three.
      coordinator: Address and port of process 0, as host:port.
      processes: Number of processes.
      process: Index of this process, from 0.
    """

    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def check(self) -> None:
        """Raise a ValueError if only some of the three are set."""
        given = (self.coordinator, self.processes, self.process)
        if any(x is not None for x in given) and any(x is None for x in given):
            raise ValueError(
                "coordinator, processes and process must be passed together, got "
                f"{self.coordinator}, {self.processes} and {self.process}"
            )

    def start(self) -> None:
        """Connect this process to the others, before it uses any device."""
        if self.distributed or self.coordinator is not None:
            jax.distributed.initialize(
                coordinator_address=self.coordinator,
                num_processes=self.processes,
                process_id=self.process,
            )


def parse_mesh(text: str, devices: int) -> tuple[int, int]:
    """Parse the sizes of a mesh's axes.

    Args:
      text: ``"data=8,fsdp=2"``, in any order. A missing axis has size 1, except for
        ``data``, which takes the remaining devices.
      devices: number of devices.

    Returns:
      The sizes of ``data`` and of ``fsdp``; their product is ``devices``.

    Raises:
      ValueError: if the text is malformed or the product differs from ``devices``.

    Examples:
      >>> parse_mesh("fsdp=2", 8)
      (4, 2)
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh must be like data=8,fsdp=1, got {text!r} (at {part!r})"
            )
        sizes[name] = int(size)
    fsdp = sizes.get("fsdp", 1)
    data = sizes.get("data", max(1, devices // fsdp))
    if data * fsdp != devices:
        raise ValueError(
            f"a mesh of data={data},fsdp={fsdp} needs {data * fsdp} devices, there are "
            f"{devices}"
        )
    return data, fsdp


def make_mesh(text: str) -> Mesh:
    """Return the mesh of all devices of all processes, according to ``parse_mesh``."""
    sizes = parse_mesh(text, jax.device_count())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Return the sharding of batches: every device holds a part of the rows."""
    return NamedSharding(mesh, P(AXES))


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """Split kernels over ``fsdp`` along their largest divisible axis.

    Biases and scales are copied: they are too small to be worth a message each.

    Args:
      mesh: the mesh.
      params: the parameters, or their shapes.

    Returns:
      A ``NamedSharding`` for each parameter.
    """
    parts = mesh.shape["fsdp"]

    def of_leaf(leaf):
        axes = [a for a, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.ndim < 2 or not axes:
            return replicated(mesh)
        longest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

    return jax.tree.map(of_leaf, params)


def own_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
    """Return the rows of a batch that the devices of this process hold, in order.

    Args:
      sharding: the sharding of the batch.
      batch_size: number of rows on all devices.

    Returns:
      The row indices.

    Raises:
      ValueError: if the rows cannot be split evenly over the devices.
    """
    devices = sharding.mesh.size
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} images cannot be split evenly over {devices} "
            "devices"
        )
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    rows = [np.arange(batch_size)[part] for part in parts if part is not None]
    return np.unique(np.concatenate(rows))


def to_devices(rows: Any, sharding: NamedSharding) -> Any:
    """Return global arrays made from the rows that each process holds."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), rows
    )


def together(function: Callable[[], Any]) -> Any:
    """Call a function in every process, and end all of them if it fails in one.

    Otherwise the others would wait for the failed process forever.

    Args:
      function: the function; it fails with a ValueError or an OSError.

    Returns:
      Its result in this process.

    Raises:
      SystemExit: in every process, if it fails in one.
    """
    result, error = None, None
    try:
        result = function()
    except (ValueError, OSError) as caught:
        error = caught
    failed = np.flatnonzero(_gathered(np.array([error is not None])))
    if error:
        raise SystemExit(f"error: {error}")
    if failed.size:
        raise SystemExit(f"error: process {failed[0]} failed; see its error message")
    return result


def same_everywhere(print_: str) -> bool:
    """Tell whether all processes have the same fingerprint."""
    prints = _gathered(np.frombuffer(bytes.fromhex(print_), np.uint8))
    return bool(np.all(prints == prints[0]))


def digest(tree: Any, mesh: Mesh) -> str:
    """Return a fingerprint of all numbers in a tree, as this process sees them.

    If processes hold copies of the same numbers, each process uses its own copy, so the
    fingerprints of copies that have drifted apart differ.

    Args:
      tree: global arrays.
      mesh: their mesh.

    Returns:
      16 hexadecimal digits.
    """
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(_copied_everywhere(mesh)(tree)):
        whole.update(np.asarray(leaf.addressable_data(0)).tobytes())
    return whole.hexdigest()[:16]


def size_of(tree: Any) -> int:
    """Count the numbers in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def _copied_everywhere(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def _gathered(local: np.ndarray) -> np.ndarray:
    """Return one row from each process."""
    rows = multihost_utils.process_allgather(local)
    return np.reshape(rows, [jax.process_count(), -1])
