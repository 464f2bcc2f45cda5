"""What all parts have: their options, their time, and a record that is always whole."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from reporting import harness, stored


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """What a part is told.

    Attributes:
      data_dir: Folder with the IDX files of Fashion-MNIST.
      cache: Folder of images that are computed; None for the usual one.
    """

    data_dir: Path | None = None
    cache: Path | None = None


class Budget:
    """The time that is left."""

    def __init__(self, seconds: float):
        """Begins with so many seconds from now."""
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end; below 0 after it."""
        return self._end - time.perf_counter()


class Report(harness.Report):
    """A record that is written anew with everything that is added to it.

    So a part that is stopped, whenever that is, leaves what it had found.
    """

    def __init__(self, program: str, options: Options, root: Path = stored.ROOT):
        """Opens the report as ``harness.Report`` does, and writes it."""
        super().__init__(program, options, root)
        precision: Any = jax.config.jax_default_matmul_precision  # pyright: ignore
        # Without one, float32 is multiplied as TF32 on recent NVIDIA GPUs.
        self.record["matmul_precision"] = precision
        self.record["errors"] = []
        self.save()

    def table(self, *args: Any, **key: Any) -> None:
        """As in ``harness.Report``, and written."""
        super().table(*args, **key)
        self.save()

    def listing(self, *args: Any, **key: Any) -> None:
        """As in ``harness.Report``, and written."""
        super().listing(*args, **key)
        self.save()

    def claim(self, *args: Any, **key: Any) -> None:
        """As in ``harness.Report``, and written."""
        super().claim(*args, **key)
        self.save()

    def error(self, what: str, error: BaseException | str) -> None:
        """Adds what could not be measured, and why not."""
        why = error
        if isinstance(error, BaseException):
            first, *_ = [*str(error).splitlines(), ""]
            why = f"{type(error).__name__}: {first[:300]}"
        self.record["errors"].append({"what": what, "error": why})
        print(f"\n{what}: {why}", flush=True)
        self.save()

    def save(self) -> None:
        """Writes what there is, and how much memory has been taken at the most."""
        statistics = jax.local_devices()[0].memory_stats() or {}
        names = ("peak_bytes_in_use", "bytes_limit")
        self.record["device_memory"] = {
            name: statistics[name] for name in names if name in statistics
        }
        if self.path is not None:
            stored.write_record(self.path, self.record)
