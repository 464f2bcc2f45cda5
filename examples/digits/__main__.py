"""Train a small ResNet on scanned digits, dense and sparse, and compare them.

    python -m examples.digits
    python -m examples.digits --methods rigl --correction batch_variance --seeds 3

The methods are ``dense``; ``static``, a random topology that never changes; ``set``,
which drops small weights and grows random ones; ``rigl``, which grows weights with
large gradients. By default all four are trained, and RigL a second time with
SparseOpt's correction.

All methods share the images and their split, the network, its initial weights and the
order of the batches (both decided by the seed), the optimizer, the learning rate and
its schedule, the weight decay and the number of epochs. All sparse methods start from
the same masks and keep the same number of weights in every layer; SET and RigL update
them at the same steps, until 75 % of training. No setting was tuned for one method.

The folder ``--output`` receives ``figure.png``, ``results.md`` and ``results.json``,
``config.json`` and ``log.jsonl`` (a row for every epoch and every finished run). The
same command resumes an interrupted comparison with its next run.

Sparsity is theoretical: zeros are simulated by masks on dense arrays, so no method is
faster than the dense one here.
"""

from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console

import sparseopt_jax as so
from examples.common.progress_bar import progress_bar
from examples.common.run_folder import FILES, RunFolder, finished_runs, run_id
from examples.common.versions import versions
from examples.digits.config import TEST_IMAGES, Arm, Config
from examples.digits.training import Trainer, abstract_variables, make_topology

NOTE = (
    "Sparsity is theoretical: zeros are simulated by masks on dense arrays, which save "
    "neither time nor memory."
)


def compare(config: Config, folder: RunFolder, weights: int, console: Console) -> None:
    """Train the runs that the log lacks, then write and print the comparison."""
    train_missing(config, folder, console)
    by_id = {run_id(row): row for row in finished_runs(folder.path)}
    runs = [by_id[*arm, seed] for arm in config.arms for seed in range(config.seeds)]

    # Imported late: it takes a second, and nothing before needs it.
    from examples.digits import report as digits_report

    entries = digits_report.summarize(runs, weights)
    caption = (
        f"Accuracy after the last epoch on {TEST_IMAGES} test images, mean ± standard "
        f"deviation over {config.seeds} seeds; epochs to {digits_report.TARGET:.0%}: "
        f"mean over the runs that reached it, with their number if not all did. {NOTE}"
    )
    folder.write_json(
        "results.json", {"note": caption, "versions": versions(), "results": entries}
    )
    folder.write_text("results.md", digits_report.markdown(entries, caption))
    title = (
        f"A ResNet of {weights:,} weights on scanned digits, sparsity "
        f"{config.sparsity:g}: mean ± standard deviation over {config.seeds} seeds"
    )
    with folder.writing("figure.png") as path:
        digits_report.draw(runs, title, path)
    console.print(digits_report.rich_table(entries, caption))
    console.print(f"Written to {folder.path}: {', '.join(FILES)}.")


def train_missing(config: Config, folder: RunFolder, console: Console) -> None:
    """Train every method and seed for which the log holds no finished run."""
    folder.forget_unfinished()
    finished = {run_id(row) for row in finished_runs(folder.path)}
    # All methods of one seed before the next seed: the load of the machine, which
    # varies within minutes, then affects all their times alike.
    missing = [
        (arm, seed)
        for seed in range(config.seeds)
        for arm in config.arms
        if (*arm, seed) not in finished
    ]
    if finished:
        console.print(
            f"{len(finished)} runs are already finished, {len(missing)} remain."
        )
    if not missing:
        return
    # Imported late: it takes seconds, and mistakes in the options are reported first.
    from examples.digits.dataset import load

    train, test = load(folder.path / "data")
    folder.append({"event": "start", "note": NOTE, "versions": versions()})
    trainers: dict[Arm, Trainer] = {}
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(missing) * config.epochs)
        for arm, seed in missing:
            if arm not in trainers:
                bar.update(task, description=f"{arm.label}: compiling")
                trainers[arm] = Trainer(config, arm, train, test)
            text = ""
            for row in trainers[arm].run(seed):
                folder.append(row)
                if row["event"] == "epoch":
                    text = f"{arm.label}, seed {seed}: {row['test_accuracy']:.1%}"
                    bar.update(task, advance=1, description=text)
            console.print(text)
        bar.update(task, description="trained")


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with ``args``, or with the arguments of the command line."""
    config = tyro.cli(Config, prog="python -m examples.digits", args=args)
    console = Console()
    try:
        plan, folder = prepare(config)
        console.print(
            f"{plan.size:,} weights; sparse methods keep {plan.active:,} of them "
            f"active. {NOTE}"
        )
        compare(config, folder, plan.size, console)
    except KeyboardInterrupt:
        again = ", without --overwrite," if config.overwrite else ""
        console.print(
            f"Stopped. {len(finished_runs(config.output))} of "
            f"{len(config.arms) * config.seeds} runs are finished and stay in "
            f"{config.output / 'log.jsonl'}; run the same command again{again} to "
            "resume."
        )
        raise SystemExit(130) from None


def prepare(config: Config) -> tuple[Any, RunFolder]:
    """Return the plan and the folder; exit if the options are wrong."""
    try:
        topology = make_topology(config, "static")
        plan = so.plan(abstract_variables(config)["params"], topology)
        return plan, RunFolder(config.output, config.record(), config.overwrite)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
