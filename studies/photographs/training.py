"""Trains what a study lacks, several runs at a time, and keeps every finished one."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from examples.common.run_folder import RunFolder, finished_runs
from reporting import harness
from studies.convergence.compare import TUNING_SEEDS, best_rate, gains, summaries
from studies.convergence.conditions import Condition
from studies.convergence.runs import Network, Outcome, Trainer
from studies.photographs.conditions import SEEDS
from studies.photographs.networks import networks

# Learning rates beyond the network's that an arm may be given.
MORE_RATES = 2
# A second thread does not make layers as small as these faster.
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclasses.dataclass(frozen=True)
class DataOptions(harness.Options):
    """The options of every program that learns photographs.

    Attributes:
      data_dir: The folder of Fashion-MNIST's four IDX files; by default where Debian's
        package dataset-fashion-mnist installs them.
    """

    data_dir: Path | None = None


@dataclasses.dataclass(frozen=True)
class Options(DataOptions):
    """The options of the comparison.

    Attributes:
      folder: Where finished runs are kept; the next call trains only what is missing.
      processes: How many runs to train at a time, each with one thread.
      minutes: Start no run after so many minutes. The record then has the conditions
        of which every run is finished.
    """

    folder: Path = Path("runs/photographs")
    processes: int = 2
    minutes: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes < 1:
            raise SystemExit(f"--processes must be at least 1, got {self.processes}")


class Run(NamedTuple):
    """What one run is trained with.

    Attributes:
      condition: the condition's name.
      arm: the correction.
      rate: peak of the learning rate.
      seed: decides weights, masks and the order of images.
      tuning: whether held-out images judge it, instead of test images.
    """

    condition: str
    arm: str
    rate: float
    seed: int
    tuning: bool


class Runs:
    """The finished runs of a folder.

    Attributes:
      outcomes: by run.
    """

    def __init__(self, folder: Path, quick: bool):
        """Read what is finished."""
        self.quick = quick
        self.outcomes: dict[Run, Outcome] = {}
        for row in finished_runs(folder):
            run = Run(*(row[name] for name in Run._fields))
            found = {name: row[name] for name in Outcome._fields}
            self.outcomes[run] = Outcome(**found)

    def tuning(self, condition: Condition, arm: str, network: Network) -> list[Run]:
        """Return the runs that choose an arm's learning rate, as far as they are known.

        While the best of an arm's rates is the highest or the lowest, it is given the
        next one, up to ``MORE_RATES`` times.
        """
        rates = sorted(network.rates)
        runs = self._at(rates, condition, arm)
        for _ in range(MORE_RATES):
            if any(run not in self.outcomes for run in runs):
                break
            best, _ = self._best(runs)
            if best == rates[-1]:
                rates = [*rates, 2 * best]
            elif best == rates[0]:
                rates = [best / 2, *rates]
            else:
                break
            runs = self._at(rates, condition, arm)
        return runs

    def rate(self, condition: Condition, arm: str, network: Network) -> float | None:
        """Return the learning rate that did best, None if runs are missing."""
        tuning = self.tuning(condition, arm, network)
        if any(run not in self.outcomes for run in tuning):
            return None
        best, _ = self._best(tuning)
        return best

    def tried(
        self, condition: Condition, arm: str, network: Network
    ) -> tuple[float, list[dict[str, Any]]]:
        """Return the best rate of an arm, and a row for each that was tried."""
        return self._best(self.tuning(condition, arm, network))

    def final(
        self,
        condition: Condition,
        arm: str,
        network: Network,
        rate: float | None = None,
    ) -> list[Run] | None:
        """Return the runs that are compared, None if the rate is not chosen yet.

        ``rate`` is the learning rate, by default the one that is chosen.
        """
        if rate is None:
            rate = self.rate(condition, arm, network)
        if rate is None:
            return None
        seeds = range(2 if self.quick else SEEDS[condition.network])
        return [Run(condition.name, arm, rate, seed, tuning=False) for seed in seeds]

    def compared(
        self,
        condition: Condition,
        arm: str,
        network: Network,
        rate: float | None = None,
    ) -> list[Outcome]:
        """Return the outcomes of ``final``'s runs; none unless every run is there."""
        runs = self.final(condition, arm, network, rate) or []
        if any(run not in self.outcomes for run in runs):
            return []
        return [self.outcomes[run] for run in runs]

    def _at(self, rates: Sequence[float], condition: Condition, arm: str) -> list[Run]:
        name = condition.like or condition.name
        seeds = TUNING_SEEDS[:1] if self.quick else TUNING_SEEDS
        return [Run(name, arm, r, seed, tuning=True) for r in rates for seed in seeds]

    def _best(self, runs: Sequence[Run]) -> tuple[float, list[dict[str, Any]]]:
        accuracies: dict[float, list[float]] = {}
        for run in runs:
            accuracies.setdefault(run.rate, []).append(self.outcomes[run].accuracy)
        return best_rate(accuracies)

    def is_finished(self, condition: Condition, network: Network) -> bool:
        """Return whether every run of every arm is there."""
        return all(self.compared(condition, arm, network) for arm in condition.arms)

    def gains(self, condition: Condition, network: Network) -> list[tuple[str, float]]:
        """Return the arms that ``compare.gains`` finds, with their learning rates.

        There are none before the condition is finished.
        """
        rates, outcomes = {}, {}
        for arm in condition.arms:
            outcomes[arm] = self.compared(condition, arm, network)
            if not outcomes[arm]:
                return []
            rates[arm] = self.rate(condition, arm, network)
        return [(row["arm"], row["rate"]) for row in gains(summaries(rates, outcomes))]


class Job(NamedTuple):
    """The runs of one arm.

    Attributes:
      condition: how they are trained.
      arm: the correction.
      rate: peak of the learning rate; None to choose it by tuning.
    """

    condition: Condition
    arm: str
    rate: float | None = None


def train_missing(options: Options, conditions: Sequence[Condition]) -> Runs:
    """Train what the folder does not hold yet.

    Args:
      options: where runs are kept, how many are trained at a time, and until when.
      conditions: those that are like another one come after it.

    Returns:
      All finished runs.
    """
    _open(options)
    end = None if options.minutes is None else time.time() + 60 * options.minutes
    if options.processes > 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
    jobs = [Job(condition, arm) for condition in conditions for arm in condition.arms]
    _train_all(options, jobs, end)
    runs = Runs(options.folder, options.quick)
    available = networks(options.data_dir, options.quick)
    again = dict.fromkeys(
        Job(condition, condition.arms[0], rate)
        for condition in conditions
        for _, rate in runs.gains(condition, available[condition.network])
    )
    _train_all(options, [*again], end)
    return Runs(options.folder, options.quick)


def _train_all(options: Options, jobs: Sequence[Job], end: float | None) -> None:
    if options.processes == 1 or not jobs:
        for job in jobs:
            _train(options, job, end)
        return
    begun: dict[tuple[str, str, float | None], concurrent.futures.Future[None]] = {}
    with concurrent.futures.ProcessPoolExecutor(
        options.processes, multiprocessing.get_context("spawn")
    ) as pool:
        for job in jobs:
            condition, arm, rate = job
            if rate is None and condition.like is not None:
                # It chooses the learning rate.
                begun[condition.like, arm, None].result()
            submitted = pool.submit(_train, options, job, end)
            begun[condition.name, arm, rate] = submitted
        for future in begun.values():
            future.result()


def _train(options: Options, job: Job, end: float | None) -> None:
    """Train the missing runs of one arm: those that tune it, then the others."""
    condition, arm, _ = job
    network = networks(options.data_dir, options.quick)[condition.network]
    folder = _open(options)
    trainer = None
    for run in _missing(options, job, network):
        if end is not None and time.time() > end:
            return
        trainer = trainer or Trainer(network, condition, arm)
        data = network.data
        judge = data.validation if run.tuning else data.test
        outcome = trainer.run(run.rate, run.seed, judge)
        folder.append({"event": "run", **run._asdict(), **outcome._asdict()})
        what = f"{condition.name}, {arm}, rate {run.rate:g}, seed {run.seed}"
        print(f"  {what}: {outcome.accuracy:.4f}", flush=True)


def _open(options: Options) -> RunFolder:
    return RunFolder(options.folder, {"study": "photographs", "quick": options.quick})


def _missing(options: Options, job: Job, network: Network) -> Iterator[Run]:
    """Yield the runs to train; each is in the folder before the next is asked for."""
    condition, arm, rate = job
    runs = Runs(options.folder, options.quick)
    chosen = rate is not None or condition.like is not None
    while not chosen and runs.rate(condition, arm, network) is None:
        tuning = runs.tuning(condition, arm, network)
        yield from (run for run in tuning if run not in runs.outcomes)
        runs = Runs(options.folder, options.quick)
    final = runs.final(condition, arm, network, rate) or []
    yield from (run for run in final if run not in runs.outcomes)
