"""Processes and the mesh of all their devices: where parameters and batches are.

A mesh has two axes. Batches are split over both. Along ``data`` parameters are copied,
along ``fsdp`` they are split: each of these devices holds a part of every kernel, and
of its mask and its momentum.
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
        MPI or Kubernetes they find each other; anywhere else give the next three.
      coordinator: Address and port of process 0, as host:port.
      processes: How many processes there are.
      process: Which of them this is, from 0.
    """

    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def check(self) -> None:
        """Raises a ValueError if half of it is missing."""
        given = (self.coordinator, self.processes, self.process)
        if any(x is not None for x in given) and any(x is None for x in given):
            raise ValueError(
                "coordinator, processes and process belong together, got "
                f"{self.coordinator}, {self.processes} and {self.process}"
            )

    def start(self) -> None:
        """Connects this process to the others, before it uses any device."""
        if self.distributed or self.coordinator is not None:
            jax.distributed.initialize(
                coordinator_address=self.coordinator,
                num_processes=self.processes,
                process_id=self.process,
            )


def parse_mesh(text: str, devices: int) -> tuple[int, int]:
    """The sizes of a mesh's axes.

    Args:
      text: ``"data=8,fsdp=2"``, in any order. An axis left out has size 1, but for
        ``data``, which takes what is left.
      devices: how many there are.

    Returns:
      The sizes of ``data`` and of ``fsdp``; their product is ``devices``.

    Raises:
      ValueError: if they cannot be.

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
    """The mesh of all devices of all processes, as ``parse_mesh`` reads it."""
    sizes = parse_mesh(text, jax.device_count())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same everywhere."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Batches: a part of the rows on every device."""
    return NamedSharding(mesh, P(AXES))


def param_shardings(mesh: Mesh, params: Any) -> Any:
    """Kernels split over ``fsdp`` along their largest axis that can be divided.

    Biases and scales are copied: too small to be worth a message each.

    Args:
      mesh: the mesh.
      params: the parameters, or what stands for their shapes.

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
    """Which rows of a batch the devices of this process hold, in order.

    Args:
      sharding: of the batch.
      batch_size: its rows on all devices.

    Returns:
      Their numbers.

    Raises:
      ValueError: if the devices cannot have equally many.
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
    """Global arrays from the rows that each process holds."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), rows
    )


def together(function: Callable[[], Any]) -> Any:
    """Calls a function in every process, and ends all if one of them finds a mistake.

    Otherwise the others would wait for it in vain.

    Args:
      function: what to call; a mistake is a ValueError or an OSError.

    Returns:
      What it returns in this process.

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
        raise SystemExit(f"error: process {failed[0]} found a mistake, and tells it")
    return result


def same_everywhere(print_: str) -> bool:
    """Whether all processes have the same fingerprint."""
    prints = _gathered(np.frombuffer(bytes.fromhex(print_), np.uint8))
    return bool(np.all(prints == prints[0]))


def digest(tree: Any, mesh: Mesh) -> str:
    """A fingerprint of all numbers in a tree, as this process sees them.

    Where processes have copies of the same numbers, every process takes its own, so
    that copies that have drifted apart differ in it.

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
    """How many numbers a tree holds."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@functools.cache
def _copied_everywhere(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def _gathered(local: np.ndarray) -> np.ndarray:
    """One row of each process."""
    rows = multihost_utils.process_allgather(local)
    return np.reshape(rows, [jax.process_count(), -1])
