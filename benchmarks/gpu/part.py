"""Shared by all parts: options, time budget, and a record that is always complete."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from reporting import harness, stored


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """The options of a part.

    Attributes:
      data_dir: Folder with the IDX files of Fashion-MNIST.
      cache: Folder of computed images; None for the default.
    """

    data_dir: Path | None = None
    cache: Path | None = None


class Budget:
    """The remaining time."""

    def __init__(self, seconds: float):
        """Start a budget of ``seconds`` from now."""
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Return the seconds until the end; negative after it."""
        return self._end - time.perf_counter()


class Report(harness.Report):
    """A record that is rewritten with everything that is added to it.

    So a part that is stopped at any time leaves its results so far.
    """

    def __init__(self, program: str, options: Options, root: Path = stored.ROOT):
        """Open the report as ``harness.Report`` does, and write it."""
        super().__init__(program, options, root)
        precision: Any = jax.config.jax_default_matmul_precision  # pyright: ignore
        # Without a setting, recent NVIDIA GPUs multiply float32 as TF32.
        self.record["matmul_precision"] = precision
        self.record["errors"] = []
        self.save()

    def table(self, *args: Any, **key: Any) -> None:
        """Add a table as in ``harness.Report``, and write."""
        super().table(*args, **key)
        self.save()

    def listing(self, *args: Any, **key: Any) -> None:
        """Add a listing as in ``harness.Report``, and write."""
        super().listing(*args, **key)
        self.save()

    def claim(self, *args: Any, **key: Any) -> None:
        """Add a claim as in ``harness.Report``, and write."""
        super().claim(*args, **key)
        self.save()

    def error(self, what: str, error: BaseException | str) -> None:
        """Add something that could not be measured, with the reason."""
        why = error
        if isinstance(error, BaseException):
            first, *_ = [*str(error).splitlines(), ""]
            why = f"{type(error).__name__}: {first[:300]}"
        self.record["errors"].append({"what": what, "error": why})
        print(f"\n{what}: {why}", flush=True)
        self.save()

    def save(self) -> None:
        """Write the record, with the peak memory so far."""
        statistics = jax.local_devices()[0].memory_stats() or {}
        names = ("peak_bytes_in_use", "bytes_limit")
        self.record["device_memory"] = {
            name: statistics[name] for name in names if name in statistics
        }
        if self.path is not None:
            stored.write_record(self.path, self.record)
