"""The accuracy cost of blocks: RigL and SET on blocks against single weights.

    python -m studies.block_accuracy

A perceptron with two hidden layers of 1,024 neurons learns the synthetic glyphs of
``studies.convergence`` in 500 steps. Both hidden kernels have the same sparsity; the
classifier is dense. All arms share the learning rate, which was not tuned, and the
seeds. They use masks on dense arrays, since compact parameters give the same results.

Finished runs are kept in ``--folder``: an interrupted study resumes with the next run.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import sparseopt_jax as so
from examples.common.mlp import MLP
from examples.common.run_folder import RunFolder, finished_runs, run_id
from reporting import harness
from reporting.statistics import difference
from studies.convergence.conditions import Condition
from studies.convergence.runs import Data, Network, Trainer, draw_glyphs

SEEDS, RATE, BLOCK, WIDTH = 5, 0.2, 64, 1_024


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """The options of this study.

    Attributes:
      folder: Folder of finished runs.
      seeds: Number of seeds.
    """

    folder: Path = Path("runs/block_accuracy")
    seeds: int = SEEDS


class Weights(Condition):
    """Single weights are active or inactive, equally many in every hidden layer."""

    __slots__ = ()
    structure: ClassVar[so.structures.Structure] = so.Unstructured()

    def topology(self, steps: int, params: Any, seed: int) -> so.Topology:
        """Return the topology."""
        del params, seed
        moved = {"rigl": so.rigl, "set": so.set_}[self.method]
        return moved(
            self.sparsity,
            every=self.every(steps),
            stop=max(2, 3 * steps // 4),
            distribution={"*": self.sparsity},
            structure=self.structure,
            where=lambda path, leaf: not path.startswith("head"),
        )


class Blocks(Weights):
    """Blocks are active or inactive, equally many in every hidden layer."""

    __slots__ = ()
    structure: ClassVar[so.structures.Structure] = so.Block((BLOCK, BLOCK))


def arms() -> list[Condition]:
    """Return the arms, dense first."""
    return [
        Condition("dense", method="static", sparsity=0.0),
        *(
            kind(f"{title}, {100 * sparsity:g} %, {units}", "glyphs", name, sparsity)
            for name, title in (("rigl", "RigL"), ("set", "SET"))
            for sparsity in (0.8, 0.9)
            for kind, units in ((Weights, "weights"), (Blocks, "blocks"))
        ),
    ]


def network(quick: bool) -> Network:
    """Return the perceptron and its images."""
    images = (64, 32, 32) if quick else (5_000, 2_000, 2_000)
    data: Data = draw_glyphs(*images)
    batch, epochs = (32, 2) if quick else (100, 10)
    width = 2 * BLOCK if quick else WIDTH
    return Network(lambda _: MLP(2, width, 100), data, batch, epochs, (RATE,), {})


def train_missing(options: Options, folder: RunFolder) -> None:
    """Train every arm with every seed that the folder lacks."""
    finished = {run_id(row) for row in finished_runs(folder.path)}
    glyphs = network(options.quick)
    for arm in arms():
        trainer = None
        for seed in range(options.seeds):
            if (arm.name, None, seed) in finished:
                continue
            trainer = trainer or Trainer(glyphs, arm, "none")
            outcome = trainer.run(RATE, seed, glyphs.data.test)
            row = {"event": "run", "method": arm.name, "seed": seed}
            folder.append(row | {"accuracies": outcome.accuracies})
            print(f"  {arm.name}, seed {seed}: {outcome.accuracy:.3f}", flush=True)


def main(options: Options) -> None:
    """Run the study."""
    report = harness.Report("studies.block_accuracy", options)
    settings = {"rate": RATE, "block": BLOCK, "width": WIDTH, "quick": options.quick}
    folder = RunFolder(options.folder, settings)
    train_missing(options, folder)
    found = {run_id(row): row for row in finished_runs(folder.path)}
    rows, single = [], {}
    for arm in arms():
        runs = [found[arm.name, None, seed] for seed in range(options.seeds)]
        final = [run["accuracies"][-1] for run in runs]
        row = {"method": arm.method, "sparsity": arm.sparsity, "name": arm.name}
        row |= {"accuracy": float(np.mean(final)), "sd": float(np.std(final, ddof=1))}
        pair = arm.method, arm.sparsity
        if isinstance(arm, Blocks):
            row["lost"] = difference(final, single[pair])
        else:
            row["lost"], single[pair] = None, final
        rows.append(row)
    title = f"Test accuracy, blocks of {BLOCK}, {options.seeds} seeds"
    report.listing(title, rows, block=BLOCK, seeds=options.seeds, width=WIDTH)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
