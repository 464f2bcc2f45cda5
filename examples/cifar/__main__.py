"""Train a ResNet-20 or a WRN-22-2 on CIFAR, dense or sparse, with several seeds.

    python -m examples.cifar --recipe rigl_cifar100_r20 --seeds 5
    python -m examples.cifar --recipe sparseopt_cifar100_r20 --sparsity 0.95
    python -m examples.cifar --recipe rigl_erk_wrn22_2 --dtype bfloat16
    python -m examples.cifar --dataset fashion_mnist --data-dir ~/fashion-mnist
    python -m examples.cifar --dataset glyphs16 --width 8 --epochs 10

A recipe says how the network is trained, and why: ``recipes.py`` lists them with their
sources. Every field of a recipe has an option that overrides it. CIFAR and
Fashion-MNIST are downloaded by tensorflow-datasets; the latter can also be read from
its IDX files. ``--dataset glyphs`` needs no download: its images are synthetic, and
numbers on them say nothing about photographs.

All images stay on the device, where they are cropped and mirrored. On accelerators, all
steps between two updates of the masks run in one compiled loop, and all seeds in one
program. On CPU, where convolutions in loops are slow, steps run one by one, and seeds
one after another. ``--loop`` and ``--together`` override this.

The folder ``--output`` receives ``config.json``, ``results.json`` and ``figure.png``,
for each seed a folder with ``log.jsonl`` and ``events`` for TensorBoard, and
``checkpoints``. Started again with the same options, an interrupted run resumes from
its last checkpoint, bit for bit if the device computes deterministically (on GPUs:
XLA_FLAGS=--xla_gpu_deterministic_ops=true). SIGTERM makes it save a checkpoint and
exit. Two programs must not write to one folder at the same time.

A seed whose loss becomes non-finite ends there, and the other seeds continue: its log
and ``results.json`` say so, and means and the figure leave it out.

Sparsity is theoretical: zeros are simulated by masks on dense arrays, so no method is
faster than the dense one here.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from examples.cifar.config import Config
from examples.cifar.data import SYNTHETIC, Dataset, load
from examples.cifar.group import Group, seed_folder
from examples.cifar.trainer import Trainer
from examples.common.progress_bar import progress_bar
from examples.common.run_folder import (
    FILES,
    RunFolder,
    check_folder,
    finished_runs,
    read_log,
)
from examples.common.versions import versions

NOTE = (
    "Sparsity is theoretical: zeros are simulated by masks on dense arrays, which save "
    "neither time nor memory."
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with ``args``, or with the arguments of the command line."""
    config = tyro.cli(Config, prog="python -m examples.cifar", args=args)
    console = Console()
    try:
        dataset, trainer, folder, groups = prepare(config)
        console.print(describe(trainer, dataset))
        to_do = [group for group in groups if not group.is_finished]
        if len(to_do) < len(groups):
            console.print(f"{len(groups) - len(to_do)} of {len(groups)} are finished.")
        train(to_do, trainer.total, console)
    except KeyboardInterrupt:
        console.print("Stopped. Run the same command again to resume.")
        raise SystemExit(130) from None
    report(config, trainer, dataset, folder, console)


def prepare(config: Config) -> tuple[Dataset, Trainer, RunFolder, list[Group]]:
    """Load the data and prepare the training; exit if the options are wrong."""
    record, at_once = config.record(), config.at_once
    try:
        dataset = load(
            config.chosen.dataset,
            config.data_dir,
            train=config.train_images,
            test=config.test_images,
        )
        trainer = Trainer(config, dataset, together=at_once, loop=config.loop)
        folder = open_folder(config, record)
        groups = [
            Group(trainer, config, record, range(first, first + at_once))
            for first in range(0, config.seeds, at_once)
        ]
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    return dataset, trainer, folder, groups


def train(groups: Sequence[Group], steps: int, console: Console) -> None:
    """Train one group after another for ``steps`` steps each."""
    # Imported late: it takes seconds, and mistakes in the options are reported first.
    from sparseopt_jax.checkpoint import stop_on_sigterm

    stop = stop_on_sigterm()  # one for all, so that no SIGTERM is missed between groups
    with progress_bar(console) as bar:
        task = bar.add_task("compiling", total=len(groups) * steps)
        for group in groups:
            group.go(bar, task, stop)


def open_folder(config: Config, record: Any) -> RunFolder:
    """Open the folder of the run.

    A stopped run that is started again is never removed.

    Raises:
      ValueError: if it holds another run and ``--overwrite`` was not passed.
    """
    output = config.folder
    try:
        check_folders(output, record, config.seeds)
        return RunFolder(output, record)
    except ValueError:
        if not config.overwrite or not output.is_dir():
            raise
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    for folder in output.glob("seed_*/"):
        shutil.rmtree(folder / "events", ignore_errors=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds files that are not ours
            folder.rmdir()
    return RunFolder(output, record, overwrite=True)


def check_folders(output: Path, record: Any, seeds: int) -> None:
    """Check that a folder, and the folders of its seeds, hold no other run.

    Args:
      output: the folder, which need not exist; nothing is written.
      record: everything that decides the results, as in ``config.json``.
      seeds: number of seeds.

    Raises:
      ValueError: if one of them holds another run.
    """
    seed_folders = sorted(folder.name for folder in output.glob("seed_*/"))
    check_folder(output, record, parts=["checkpoints", *seed_folders])
    for seed in range(seeds):
        check_folder(seed_folder(output, seed), {**record, "seed": seed})


def describe(trainer: Trainer, dataset: Dataset) -> str:
    """Describe in words what is about to be trained."""
    recipe = trainer.recipe
    lines = [
        f"{recipe.network} of width {recipe.width}, {recipe.method}, on "
        f"{dataset.name}: {trainer.weights:,} parameters, {trainer.total:,} steps of "
        f"{recipe.batch_size} images, {recipe.epochs:g} epochs."
    ]
    if trainer.plan:
        lines.append(
            f"{trainer.plan.active:,} of {trainer.plan.size:,} weights are active in "
            f"sparse layers. {NOTE}"
        )
    return "\n".join([*lines, *[SYNTHETIC] * dataset.is_synthetic])


def report(
    config: Config,
    trainer: Trainer,
    dataset: Dataset,
    folder: RunFolder,
    console: Console,
) -> None:
    """Write and print the results of all seeds."""
    # Imported late: it takes a second, and nothing before needs it.
    from examples.cifar import report as cifar_report

    folders = [seed_folder(folder.path, seed) for seed in range(config.seeds)]
    logs = [read_log(path) for path in folders]
    results = cifar_report.summarize(logs)
    note = " ".join([NOTE, *[SYNTHETIC] * dataset.is_synthetic])
    plan = trainer.plan
    folder.write_json(
        "results.json",
        {
            "note": note,
            "recipe": config.recipe,
            "parameters": trainer.weights,
            "sparse_weights": plan.size if plan else None,
            "active_weights": plan.active if plan else None,
            "versions": versions(),
            **results,
        },
    )
    if len(results["diverged"]) == config.seeds:
        step = finished_runs(folders[0])[0]["step"]
        raise SystemExit(
            f"error: no seed has a finite loss (seed 0 has diverged by step {step}); "
            f"{folder.path / 'results.json'} has the curves until then. Try a lower "
            "--learning-rate"
        )
    recipe = trainer.recipe
    parts = [dataset.name + " (synthetic)" * dataset.is_synthetic, recipe.network]
    parts += [recipe.method, f"correction: {recipe.correction}"]
    if plan:
        parts.append(f"sparsity {1 - plan.active / plan.size:.3g}")
    accuracy = cifar_report.accuracy(results)
    with folder.writing("figure.png") as path:
        cifar_report.draw(results, f"{', '.join(parts)}. {accuracy}", path)
    console.print(f"{accuracy}. {note}")
    console.print(f"Written to {folder.path}: results.json, figure.png.")


if __name__ == "__main__":
    main()
