"""Train a language model: dense, sparse with plain Adam, and sparse with SMET.

    python -m examples.language_model
    python -m examples.language_model --density 0.1 --block 16 --seeds 3

A weight that a moving topology grows starts with empty moments. Adam's bias correction
has long faded by then, so the weight's first steps are at least three times the
learning rate, and the loss jumps. SMET (arXiv 2606.00888) counts the steps of each
weight separately, warms up grown weights, scales the learning rate by the density, and
stores gradients and moments of active weights only. The methods are

- ``dense``: Adam, no masks;
- ``sparse_adam``: the same Adam within ``so.sparsify``, moments of every weight;
- ``smet``: ``so.smet``.

All methods share the text, the network, its initial weights and the batches (both
decided by the seed), the number of steps and the shape of the learning rate's schedule.
Both sparse methods start from the same masks, which are updated at the same steps by
the same rule: the smallest weights are dropped, random ones are grown. The learning
rates are the same too, once SMET has divided its own by the density; none was tuned.
``jumps.py`` defines the loss jump.

The folder ``--output`` receives ``figure.png``, ``results.md`` and ``results.json``,
``config.json`` and ``log.jsonl`` (a row for every finished run, with its losses). The
same command resumes an interrupted comparison with its next run.

Parameters stay dense arrays with zeros, so no method's multiplications are faster than
the dense one's here; SMET saves memory.
"""

import dataclasses
import difflib
import functools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import sparseopt_jax as so
from examples.common.progress_bar import progress_bar
from examples.common.run_folder import FILES, RunFolder, finished_runs, run_id
from examples.common.versions import versions
from examples.language_model import data as text
from examples.language_model.jumps import AROUND, judged
from examples.language_model.net import SIZES, LanguageModel
from sparseopt_jax.topologies.rewiring import Rewiring

METHODS = {"dense": "dense", "sparse_adam": "sparse Adam", "smet": "SMET"}
# For the larger networks, the values of the authors' scripts times the density that
# SMET divides by. The value for 350m is ours, and so is using one value for all
# methods.
LEARNING_RATE = {"tiny": 4e-3, "130m": 1e-3, "350m": 7e-4, "1b": 5e-4}
EVALUATIONS = 8
VALIDATION_BATCHES = 32


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a language model: dense, sparse with plain Adam, and sparse with SMET.

    Attributes:
      methods: Methods to train, in this order.
      density: Fraction of the weights that are active in every sparse kernel, in (0,
        1]. Embedding, head and norms are dense.
      block: Weights that are active or inactive together; it must divide every sparse
        kernel.
      every: Steps between updates of the masks.
      steps: Number of training steps.
      batch_size: Windows of text per step.
      length: Bytes per window.
      learning_rate: Peak of the schedule for all methods, a linear warm-up and a
        cosine. By default that of the size.
      size: The network, one of tiny, 130m, 350m, 1b.
      tied: Whether the head shares the embedding's weights.
      dtype: Dtype of the computation; parameters are float32.
      dataset: The text, Python's own standard library or the English C4.
      data_dir: Folder in which tensorflow-datasets has prepared C4.
      seeds: Number of seeds.
      first_seed: The first of them.
      output: Folder for the results and the log.
      overwrite: Replace a comparison with another configuration in that folder.
    """

    methods: tuple[Literal["dense", "sparse_adam", "smet"], ...] = (
        *("dense", "sparse_adam", "smet"),
    )
    density: float = 0.25
    block: int = 1
    every: int = 100
    steps: int = 1500
    batch_size: int = 16
    length: int = 64
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    size: str = "tiny"
    tied: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    dataset: Literal["stdlib", "c4"] = "stdlib"
    data_dir: str | None = None
    seeds: int = 1
    first_seed: int = 0
    output: Path = Path("runs/language_model")
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_choices("methods", self.methods, METHODS)
        _check_choices("size", [self.size], SIZES)
        _check_choices("dtype", [self.dtype], ["float32", "bfloat16"])
        _check_choices("dataset", [self.dataset], text.DATASETS)
        if not self.methods:
            raise ValueError(f"methods must name at least one of {', '.join(METHODS)}")
        if not 0.0 < self.density <= 1.0:
            raise ValueError(f"density must be in (0, 1], got {self.density}")
        least = {"seeds": 1, "first_seed": 0, "block": 1, "batch_size": 1, "length": 1}
        # Ten steps before an update and ten after it belong to no other update.
        least |= {"every": 2 * AROUND, "steps": self.every + AROUND + 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(
                    f"{name} must be at least {value}, got {getattr(self, name)}"
                )
        if self.learning_rate is not None and not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    def peak(self, method: str) -> float:
        """Return the learning rate after warm-up that a method's optimizer receives."""
        peak = self.learning_rate or LEARNING_RATE[self.size]
        return peak * self.density if method == "smet" else peak

    @property
    def all_seeds(self) -> range:
        """Return the seeds, ascending."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def record(self) -> dict[str, Any]:
        """Return everything that decides the results, for ``config.json``."""
        fields = dataclasses.asdict(self)
        fields |= {
            "methods": list(self.methods),
            "learning_rate": {method: self.peak(method) for method in self.methods},
        }
        return {
            name: value
            for name, value in fields.items()
            if name not in ("output", "overwrite", "data_dir")
        }


def make_model(config: Config) -> LanguageModel:
    """Return the network, with bytes as tokens."""
    return LanguageModel(
        SIZES[config.size], text.VOCABULARY, config.tied, jnp.dtype(config.dtype)
    )


def learning_rate(config: Config, method: str) -> optax.Schedule:
    """Return a linear warm-up over 5 % of the steps, then a cosine to a tenth."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak(method),
        warmup_steps=config.steps // 20,
        decay_steps=config.steps,
        end_value=0.1 * config.peak(method),
    )


def make_topology(config: Config) -> Rewiring:
    """Return the topology, the same for both sparse methods."""
    sparsity = 1.0 - config.density
    return so.set_smet(
        sparsity,
        stop=config.steps,
        block=config.block,
        every=config.every,
        where=lambda path, leaf: path != "head/kernel",
    )


def make_optimizer(
    config: Config, method: str, key: jax.typing.ArrayLike
) -> optax.GradientTransformation:
    """Return the optimizer of a method."""
    schedule = learning_rate(config, method)
    if method == "dense":
        return optax.adam(schedule)
    topology = make_topology(config)
    if method == "smet":
        # As published, where both are 100: the warm-up lasts until the next update.
        return so.smet(schedule, topology, warmup_steps=config.every, key=key)
    return so.sparsify(optax.adam(schedule), topology, key=key)


def changes(config: Config) -> list[int]:
    """Return the steps whose updates of the masks are judged."""
    topology = make_topology(config)
    due = [step for step in range(config.steps) if topology.due(step)]
    return judged(due, config.steps)


@functools.partial(jax.jit, static_argnames="model")
def init(model: LanguageModel, key: jax.Array) -> Any:
    """Return the network's parameters."""
    return model.init(key, jnp.zeros((1, 8), jnp.int32))["params"]


def next_byte_loss(model: LanguageModel, params: Any, windows: jax.Array) -> jax.Array:
    """Return the mean loss over all bytes but the first of each window, in nats.

    Args:
      model: the network.
      params: its parameters.
      windows: int32 (rows, length + 1).

    Returns:
      A scalar.
    """
    logits: Any = model.apply({"params": params}, windows[:, :-1])
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:])
    )


def train_step(
    model: LanguageModel, state: so.linen.TrainState, windows: jax.Array
) -> tuple[so.linen.TrainState, jax.Array]:
    """Take one step on one batch; return the next state and the loss."""
    loss, grads = jax.value_and_grad(functools.partial(next_byte_loss, model))(
        state.params, windows
    )
    return state.apply_gradients(grads=grads), loss


def without_change(state: so.linen.TrainState) -> so.linen.TrainState:
    """Return the state with the update of the masks in its next step suppressed.

    Only the counter of the masks advances past that step; all else is unchanged.
    """
    opt_state: Any = state.opt_state
    opt_state = opt_state._replace(count=opt_state.count + 1)
    return state.replace(opt_state=opt_state)


evaluate = jax.jit(next_byte_loss, static_argnames="model")


class Trainer:
    """Train one method, compiled once for all its seeds."""

    def __init__(self, config: Config, method: str, splits: text.Splits):
        self.config, self.method, self.splits = config, method, splits
        self.model = make_model(config)
        self.tx = make_optimizer(config, method, key=0)
        self.changes = changes(config)
        step = jax.jit(functools.partial(train_step, self.model), donate_argnums=0)
        self.step = step.lower(self._start(0), self._batch(0, 0)).compile()
        self.probe, *self.validation = (
            self._windows(splits.validation, 0, number)
            for number in range(VALIDATION_BATCHES + 1)
        )

    def run(self, seed: int, tell: Any = lambda: None) -> dict[str, Any]:
        """Train with one seed; return the row of the run."""
        state = self._start(seed)
        last = self.config.steps
        evaluated = {last * (n + 1) // EVALUATIONS for n in range(EVALUATIONS)}
        train, probe, validation, seconds = [], [], {}, []
        twins: dict[str, list[list[float]]] = {"train": [], "probe": []}
        for step in range(last):
            if step in self.changes and self.method != "dense":
                for where, losses in self._twin(state, seed, step).items():
                    twins[where].append(losses)
            probe.append(self._bits(state.params, [self.probe]))
            windows = self._batch(seed, step)
            started = time.perf_counter()
            state, loss = jax.block_until_ready(self.step(state, windows))
            seconds.append(time.perf_counter() - started)
            train.append(text.BITS * float(loss))
            if step + 1 in evaluated:
                validation[step + 1] = self._bits(state.params, self.validation)
            tell()
        return {
            "event": "run",
            "method": self.method,
            "label": METHODS[self.method],
            "seed": seed,
            "learning_rate": self.config.peak(self.method),
            "ms_per_step": 1e3 * float(np.median(seconds)),
            "optimizer_bytes": so.optimizer_bytes(state.opt_state),
            "validation": {
                "step": list(validation),
                "bits_per_byte": list(validation.values()),
            },
            "changes": self.changes,
            "train": train,
            "probe": probe,
            "twins": twins,
        }

    def _twin(
        self, state: so.linen.TrainState, seed: int, change: int
    ) -> dict[str, list[float]]:
        """Return the losses after an update of the masks as if it had not happened."""
        # A copy, because the step donates its input.
        twin = without_change(jax.tree.map(jnp.copy, state))
        twin, _ = self.step(twin, self._batch(seed, change))
        losses: dict[str, list[float]] = {"train": [], "probe": []}
        for step in range(change + 1, change + AROUND + 1):
            losses["probe"].append(self._bits(twin.params, [self.probe]))
            twin, loss = self.step(twin, self._batch(seed, step))
            losses["train"].append(text.BITS * float(loss))
        return losses

    def _start(self, seed: int) -> so.linen.TrainState:
        """Return the state before the first step, drawn from the seed."""
        # The default kind of key takes seconds to compile for each network on CPU.
        params_key, topology_key = jax.random.split(jax.random.key(seed, impl="rbg"))
        state = so.linen.TrainState.create(
            apply_fn=self.model.apply,
            params=init(self.model, params_key),
            tx=make_optimizer(self.config, self.method, topology_key),
        )
        # All seeds share one optimizer, or each would compile again: the seed's masks
        # and key are data in the optimizer's state.
        return state.replace(tx=self.tx)

    def _batch(self, seed: int, number: int) -> np.ndarray:
        return self._windows(self.splits.train, seed, number)

    def _windows(self, source: text.Source, seed: int, number: int) -> np.ndarray:
        rows, length = self.config.batch_size, self.config.length + 1
        return text.batch(source, seed=seed, number=number, rows=rows, length=length)

    def _bits(self, params: Any, batches: Iterable[np.ndarray]) -> float:
        """Return the mean loss in bits per byte."""
        losses = [evaluate(self.model, params, windows) for windows in batches]
        return text.BITS * float(np.mean(jax.device_get(losses)))


def compare(
    config: Config,
    folder: RunFolder,
    splits: text.Splits,
    plan: Any,
    console: Console,
) -> None:
    """Train the runs that the log lacks, then write and print the comparison."""
    train_missing(config, folder, splits, console)
    by_id = {run_id(row): row for row in finished_runs(folder.path)}
    methods = list(dict.fromkeys(config.methods))
    runs = [
        by_id[method, None, seed] for method in methods for seed in config.all_seeds
    ]

    # Imported late: it takes a second, and nothing before needs it.
    from examples.language_model import report

    entries = report.summarize(runs)
    caption = (
        "Bits per byte of held-out text after the last step, mean ± standard deviation "
        f"over seeds (here {config.seeds}); gap: the mean difference to dense with the "
        f"same seed. Over {len(runs[0]['changes'])} updates of the masks, in "
        "thousandths of a bit per byte: jump, the mean loss of the ten steps after an "
        "update minus that of the ten before it (dense has no updates, but the same "
        "steps); setback, the loss in the ten steps after an update minus the loss "
        "without this update."
    )
    folder.write_json(
        "results.json",
        {
            "note": caption,
            "text": splits.name,
            "parameters": plan.parameters,
            "sparse_weights": plan.size,
            "active_weights": plan.active,
            "versions": versions(),
            "smet_of_sparse_adam": report.ratios(entries),
            "results": entries,
        },
    )
    folder.write_text("results.md", report.markdown(entries, caption))
    title = (
        f"A language model of {plan.parameters:,} parameters, density "
        f"{config.density:g}, an update of the masks every {config.every} steps"
    )
    with folder.writing("figure.png") as path:
        report.draw(runs, title, path)
    console.print(report.rich_table(entries, caption))
    for measure, by_place in report.ratios(entries).items():
        for where, ratio in by_place.items():
            console.print(f"SMET / sparse Adam, {measure}, {where}: {ratio:.2f}")
    console.print(f"Written to {folder.path}: {', '.join(FILES)}.")


def train_missing(
    config: Config, folder: RunFolder, splits: text.Splits, console: Console
) -> None:
    """Train every method and seed for which the log holds no finished run."""
    folder.forget_unfinished()
    finished = {run_id(row) for row in finished_runs(folder.path)}
    # All methods of one seed before the next seed: the load of the machine, which
    # varies within minutes, then affects all their times alike.
    missing = [
        (method, seed)
        for seed in config.all_seeds
        for method in dict.fromkeys(config.methods)
        if (method, None, seed) not in finished
    ]
    if finished:
        console.print(
            f"{len(finished)} runs are already finished, {len(missing)} remain."
        )
    if not missing:
        return
    folder.append({"event": "start", "text": splits.name, "versions": versions()})
    trainers: dict[str, Trainer] = {}
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(missing) * config.steps)
        for method, seed in missing:
            name = METHODS[method]
            if method not in trainers:
                bar.update(task, description=f"{name}: compiling")
                trainers[method] = Trainer(config, method, splits)
            bar.update(task, description=f"{name}, seed {seed}")
            row = trainers[method].run(seed, functools.partial(bar.advance, task))
            folder.append(row)
            bits = row["validation"]["bits_per_byte"][-1]
            console.print(f"{name}, seed {seed}: {bits:.3f} bits per byte")
        bar.update(task, description="trained")


def main(args: Sequence[str] | None = None) -> None:
    """Run the program with ``args``, or with the arguments of the command line."""
    config = tyro.cli(Config, prog="python -m examples.language_model", args=args)
    console = Console()
    try:
        plan, splits, folder = prepare(config)
        console.print(
            f"{plan.parameters:,} parameters, {plan.size:,} of them in kernels of "
            f"which sparse methods keep {plan.active:,} weights active."
        )
        compare(config, folder, splits, plan, console)
    except KeyboardInterrupt:
        again = ", without --overwrite," if config.overwrite else ""
        runs = len(dict.fromkeys(config.methods)) * config.seeds
        console.print(
            f"Stopped. {len(finished_runs(config.output))} of {runs} runs are finished "
            f"and stay in {config.output / 'log.jsonl'}; run the same command "
            f"again{again} to resume."
        )
        raise SystemExit(130) from None


def prepare(config: Config) -> tuple[Any, text.Splits, RunFolder]:
    """Return the plan, the text and the folder; exit if the options are wrong."""
    shapes = jax.eval_shape(
        functools.partial(init, make_model(config)), jax.random.key(0)
    )
    try:
        plan = so.plan(shapes, make_topology(config))
        splits = text.load(config.dataset, config.data_dir, length=config.length + 1)
        record = {**config.record(), "text": splits.name}
        return plan, splits, RunFolder(config.output, record, config.overwrite)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _check_choices(name: str, values: Sequence[str], known: Iterable[str]) -> None:
    known = list(known)
    for value in values:
        if value not in known:
            nearest = difflib.get_close_matches(value, known, n=len(known), cutoff=0.0)
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(nearest)}")


if __name__ == "__main__":
    main()
