"""Train a language model dense, and with RigL on active blocks only.

    python -m examples.compact_transformer
    python -m examples.compact_transformer --methods dense unstructured blocks --seeds 5

A small LLaMA learns the bytes of Python's standard library. The methods are

- ``dense``: AdamW, no masks;
- ``blocks``: the same AdamW in ``so.sparsify`` with RigL, where whole blocks of weights
  are active or inactive. Parameters, gradients and moments hold the active blocks only,
  and products skip the others;
- ``unstructured``: RigL on single weights, in dense arrays with zeros. It saves no time
  and shows what blocks cost in accuracy.

Initial weights, batches, learning rates and the number of steps are the same for all;
no learning rate was tuned. All methods take their steps in turn, so that any other load
on the machine slows all of them alike.

The folder ``--output`` receives ``figure.png``, ``results.md`` and ``results.json``,
``config.json`` and ``log.jsonl``. The same command resumes an interrupted comparison
with its next seed.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console

import sparseopt_jax as so
from examples.common.progress_bar import progress_bar
from examples.common.run_folder import FILES, RunFolder, finished_runs, run_id
from examples.common.versions import versions
from examples.compact_transformer.config import Config
from examples.compact_transformer.training import Method, make_topology
from examples.language_model import data as text
from examples.language_model.net import LanguageModel, Size

HELD_OUT_BATCHES = 16


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with ``args``, or with the arguments of the command line."""
    config = tyro.cli(Config, prog="python -m examples.compact_transformer", args=args)
    console = Console()
    heads = max(1, config.width // 64)
    model = LanguageModel(Size(config.width, config.hidden, heads, config.layers))
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8), jnp.int32))["params"])
    try:
        plan = so.plan(
            jax.eval_shape(init, jax.random.key(0)), make_topology(config, "blocks")
        )
        splits = text.load("stdlib", length=config.length + 1)
        record = {**config.record(), "text": splits.name}
        folder = RunFolder(config.output, record, config.overwrite)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    console.print(
        f"{plan.parameters:,} parameters, {plan.size:,} of them in sparse kernels, of "
        f"which {plan.active:,} are active."
    )
    train_missing(config, folder, splits, (model, init), console)
    write(config, folder, plan, splits, console)


def train_missing(
    config: Config, folder: RunFolder, splits: text.Splits, network: Any, console: Any
) -> None:
    """Train all methods with every seed that the log lacks."""
    model, init = network
    folder.forget_unfinished()
    finished = {run_id(row) for row in finished_runs(folder.path)}
    names = list(dict.fromkeys(config.methods))
    missing = [
        seed
        for seed in range(config.seeds)
        if any((name, None, seed) not in finished for name in names)
    ]
    if not missing:
        return
    methods = [Method(config, name, model) for name in names]
    shape = {"rows": config.batch_size, "length": config.length + 1}
    held_out = [
        text.batch(splits.validation, seed=0, number=number, **shape)
        for number in range(HELD_OUT_BATCHES)
    ]
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(missing) * config.steps)
        for seed in missing:
            bar.update(task, description=f"seed {seed}: compiling")
            params = init(jax.random.key(seed, impl="rbg"))
            for method in methods:
                method.start(params, seed)
            for step in range(config.steps):
                windows = text.batch(splits.train, seed=seed, number=step, **shape)
                for method in methods:
                    method.step(step, windows)
                    if step + 1 in config.evaluated:
                        method.look(held_out)
                bar.update(task, description=f"seed {seed}", advance=1)
            for method in methods:
                folder.append(method.row(seed))


def write(
    config: Config, folder: RunFolder, plan: Any, splits: text.Splits, console: Any
) -> None:
    """Write and print the comparison."""
    # Imported late: it takes a second, and nothing before needs it.
    from examples.compact_transformer import report

    by_id = {run_id(row): row for row in finished_runs(folder.path)}
    names = dict.fromkeys(config.methods)
    runs = [by_id[name, None, seed] for name in names for seed in range(config.seeds)]
    about = {
        "text": splits.name,
        "config": config.record(),
        "parameters": plan.parameters,
        "sparse_weights": plan.size,
        "active_weights": plan.active,
        "versions": versions(),
    }
    results = {**about, "results": report.summarize(runs)}
    folder.write_json("results.json", results)
    shown = report.markdown(results)
    folder.write_text("results.md", shown)
    with folder.writing("figure.png") as path:
        report.draw(runs, path)
    console.print(shown, highlight=False, soft_wrap=True)
    console.print(f"Written to {folder.path}: {', '.join(FILES)}.")


if __name__ == "__main__":
    main()
