"""Trains a small ResNet on scanned digits, dense and sparse, and compares.

    python -m examples.digits
    python -m examples.digits --methods rigl --correction batch_variance --seeds 3

The methods are ``dense``; ``static``, a random topology that stays; ``set``, which
drops small weights and grows random ones; ``rigl``, which grows where the gradient is
largest. By default all four are trained, and RigL a second time with SparseOpt's
correction.

The same for all: the images and their split, the network, its initial weights and the
order of the batches (both decided by the seed), optimizer, learning rate and schedule,
weight decay, number of epochs. All sparse methods start from the same masks and keep as
many weights in every layer; SET and RigL change them at the same steps, until 75 % of
training. No setting was tuned for one of them.

The folder ``--output`` receives ``figure.png``, ``results.md`` and ``results.json``,
``config.json`` and ``log.jsonl`` (a row for every epoch and every finished run). A
comparison that was stopped goes on with the next run when it is started again.

Sparsity is theoretical: zeros are simulated by masks on dense arrays, so that no method
is faster than the dense one here.
"""

import collections
import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import traverse_util
from rich.console import Console

import sparseopt_jax as so
from examples.common.progress_bar import progress_bar
from examples.common.run_folder import FILES, RunFolder, finished_runs, run_id
from examples.common.versions import versions
from examples.digits.model import ResNet

METHODS = {"dense": "dense", "static": "static", "set": "SET", "rigl": "RigL"}
CORRECTIONS = {"none": "", "fan_in": "SparseOpt", "batch_variance": "BN variance"}
PEAK_LEARNING_RATE = {"sgd": 0.1, "adamw": 0.01}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
Correction = optax.GradientTransformationExtraArgs
IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
TRAIN_IMAGES, TEST_IMAGES = 1197, 600
NOTE = (
    "Sparsity is theoretical: zeros are simulated by masks on dense arrays, which save "
    "neither time nor memory."
)


class Arm(NamedTuple):
    """One of the things compared.

    Attributes:
      method: a key of ``METHODS``.
      correction: a key of ``CORRECTIONS``.
    """

    method: str
    correction: str = "none"

    @property
    def label(self) -> str:
        """Its name for people."""
        parts = (METHODS[self.method], CORRECTIONS[self.correction])
        return " + ".join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a small ResNet on scanned digits, dense and sparse, and compares.

    Attributes:
      methods: What to train, in this order.
      correction: Train every sparse method a second time, with its gradient corrected
        per neuron by fan-in (SparseOpt) or by the variance that Batch Normalization
        measures. auto does so for RigL alone, by fan-in.
      sparsity: Fraction of zeros over all kernels, in [0, 1).
      distribution: How the active weights are shared between layers.
      optimizer: The base optimizer of every method.
      learning_rate: Peak of the schedule, a linear warm-up and a cosine. By default 0.1
        for sgd and 0.01 for adamw.
      seeds: How many seeds: 0, 1, and so on.
      epochs: Passes over the training images.
      batch_size: Images per step.
      width: Channels of the network's first layer.
      output: Folder for the results, the log and the prepared images.
      overwrite: Replace a comparison with another configuration in that folder.
    """

    methods: tuple[Literal["dense", "static", "set", "rigl"], ...] = (
        *("dense", "static", "set", "rigl"),
    )
    correction: Literal["auto", "none", "fan_in", "batch_variance"] = "auto"
    sparsity: float = 0.95
    distribution: Literal["erdos_renyi_kernel", "erdos_renyi", "uniform"] = (
        "erdos_renyi_kernel"
    )
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float | None, tyro.conf.arg(aliases=["--lr"])] = None
    seeds: int = 5
    epochs: int = 20
    batch_size: int = 64
    width: int = 16
    output: Path = Path("runs/digits")
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_choices("methods", self.methods, METHODS)
        _check_choices("correction", [self.correction], ["auto", *CORRECTIONS])
        _check_choices("optimizer", [self.optimizer], PEAK_LEARNING_RATE)
        if not self.methods:
            raise ValueError(f"methods must name at least one of {', '.join(METHODS)}")
        for name in ("seeds", "epochs", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}"
                )
        if self.batch_size > TRAIN_IMAGES:
            raise ValueError(
                f"batch_size must be at most {TRAIN_IMAGES}, the number of training "
                f"images, got {self.batch_size}"
            )
        if not 0.0 < self.peak < math.inf:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        so.static(self.sparsity, distribution=self.distribution)  # raises

    @property
    def peak(self) -> float:
        """The learning rate after warm-up."""
        if self.learning_rate is None:
            return PEAK_LEARNING_RATE[self.optimizer]
        return self.learning_rate

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training images."""
        return TRAIN_IMAGES // self.batch_size

    @property
    def arms(self) -> list[Arm]:
        """What is compared, in order."""
        arms = []
        for method in dict.fromkeys(self.methods):
            arms.append(Arm(method))
            if self.correction == "auto":
                corrected = {"rigl": "fan_in"}.get(method)
            else:
                corrected = None if method == "dense" else self.correction
            if corrected not in (None, "none"):
                arms.append(Arm(method, corrected))
        return arms

    def record(self) -> dict[str, Any]:
        """What decides the results, for ``config.json``."""
        fields = dataclasses.asdict(self)
        fields |= {"methods": list(self.methods), "learning_rate": self.peak}
        return {
            name: value
            for name, value in fields.items()
            if name not in ("output", "overwrite")
        }


def learning_rate(config: Config) -> optax.Schedule:
    """Linear warm-up over a tenth of the steps, then a cosine to nearly nothing."""
    steps = config.epochs * config.steps_per_epoch
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.peak,
        warmup_steps=steps // 10,
        decay_steps=steps,
        end_value=1e-3 * config.peak,
    )


def make_topology(config: Config, method: str) -> so.Topology:
    """Which weights a sparse method has active."""
    if method == "static":
        return so.static(config.sparsity, distribution=config.distribution)
    stop = max(1, 3 * config.epochs * config.steps_per_epoch // 4)
    # In the first step of an epoch, long before it is evaluated; also in between, if
    # that makes fewer than 20 changes.
    changes_per_epoch = math.ceil(20 * config.steps_per_epoch / stop)
    return {"set": so.set_, "rigl": so.rigl}[method](
        config.sparsity,
        every=max(1, config.steps_per_epoch // changes_per_epoch),
        stop=stop,
        distribution=config.distribution,
        track_explored=True,
    )


def abstract_variables(config: Config) -> Any:
    """Shapes and types of the network's variables; nothing is computed."""
    return jax.eval_shape(
        functools.partial(init, ResNet(config.width)), jax.random.key(0)
    )


def make_correction(config: Config, correction: str) -> Correction:
    """What scales the gradient per neuron."""
    if correction == "fan_in":
        return so.scale_by_sparseopt()
    if correction == "batch_variance":
        links = so.infer_norm_links(
            ResNet(config.width).apply, abstract_variables(config), IMAGE, train=False
        )
        return so.scale_by_batch_variance(links)
    return optax.with_extra_args_support(optax.identity())


def make_optimizer(
    config: Config,
    method: str,
    correction: Correction,
    key: jax.typing.ArrayLike,
) -> optax.GradientTransformation:
    """The optimizer of one arm: for SparseOpt what ``so.sparse_sgd`` puts together."""
    schedule = learning_rate(config)
    decay = optax.add_decayed_weights(WEIGHT_DECAY[config.optimizer], mask=_is_kernel)
    if config.optimizer == "sgd":
        inner = optax.chain(correction, decay, optax.sgd(schedule, momentum=0.9))
    else:
        # In front of Adam the correction would be divided out again.
        inner = optax.chain(
            optax.scale_by_adam(),
            correction,
            decay,
            optax.scale_by_learning_rate(schedule),
        )
    if method == "dense":
        return inner
    return so.sparsify(inner, make_topology(config, method), key=key)


def train_step(
    state: so.linen.TrainState, images: jax.Array, labels: jax.Array
) -> tuple[so.linen.TrainState, jax.Array]:
    """One step on one batch; returns the next state and the loss."""

    def loss_fn(params):
        logits, variables = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), variables["batch_stats"]

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, batch_stats), grads = gradient(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


@functools.partial(jax.jit, static_argnames="model")
def init(model: ResNet, key: jax.Array) -> Any:
    """The network's variables."""
    return model.init(key, jnp.zeros(IMAGE.shape, IMAGE.dtype), train=False)


@functools.partial(jax.jit, static_argnames="model")
def evaluate(
    model: ResNet, variables: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Accuracy and loss."""
    logits: Any = model.apply(variables, images, train=False)
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels)
    return accuracy, cross_entropy(logits, labels)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the images."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


class Trainer:
    """One arm, compiled once for all its seeds."""

    def __init__(self, config: Config, arm: Arm, train: Any, test: Any):
        self.config, self.arm, self.train, self.test = config, arm, train, test
        self.model = ResNet(config.width)
        self.correction = make_correction(config, arm.correction)
        self.tx = make_optimizer(config, arm.method, self.correction, key=0)
        step = jax.jit(train_step, donate_argnums=0)
        batch = next(self._batches(np.random.default_rng()))
        self.step = step.lower(self._start(0), *batch).compile()

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """Trains with one seed; yields a row for each epoch and one for the run."""
        own = {**self.arm._asdict(), "label": self.arm.label, "seed": seed}
        state = self._start(seed)
        order = np.random.default_rng(seed)
        curves = collections.defaultdict(list)
        seconds = []
        for epoch in range(1, self.config.epochs + 1):
            losses = []
            for images, labels in self._batches(order):
                started = time.perf_counter()
                state, loss = jax.block_until_ready(self.step(state, images, labels))
                seconds.append(time.perf_counter() - started)
                losses.append(float(loss))
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            accuracy, loss = evaluate(self.model, variables, *self.test)
            row = {
                "train_loss": float(np.mean(losses)),
                "test_loss": float(loss),
                "test_accuracy": float(accuracy),
            }
            for name, value in row.items():
                curves[name].append(value)
            yield {"event": "epoch", **own, "epoch": epoch, **row}
        yield {
            "event": "run",
            **own,
            "ms_per_step": 1e3 * float(np.median(seconds)),
            **self._sparsity(state),
            "curves": dict(curves),
        }

    def _start(self, seed: int) -> so.linen.TrainState:
        """The state before the first step, weights and masks drawn from the seed."""
        # The default kind of key compiles for seconds for each network on CPU.
        key = jax.random.key(seed, impl="rbg")
        params_key, topology_key = jax.random.split(key)
        variables = init(self.model, params_key)
        tx = make_optimizer(self.config, self.arm.method, self.correction, topology_key)
        state = so.linen.TrainState.create(
            apply_fn=self.model.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=tx,
        )
        # All seeds share one optimizer, or each would compile anew: the masks and the
        # key that a seed decides are data, in the optimizer's state.
        return state.replace(tx=self.tx)

    def _batches(
        self, order: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The full batches of one epoch, in random order."""
        size = self.config.batch_size
        indices = order.permutation(len(self.train.labels))
        for first in range(0, size * self.config.steps_per_epoch, size):
            chosen = indices[first : first + size]
            yield self.train.images[chosen], self.train.labels[chosen]

    def _sparsity(self, state: so.linen.TrainState) -> dict[str, Any]:
        """What has become of the masks at the end of a run."""
        if self.arm.method == "dense":
            return {"explored": 1.0, "layers": []}
        numbers = jax.jit(so.metrics)(state.params, state.opt_state)
        masks = so.get_masks(state.opt_state)
        # What the correction makes of ones is its factors.
        factors, _ = self.correction.update(
            jax.tree.map(jnp.ones_like, state.params),
            self.correction.init(state.params),
            state.params,
            masks=masks,
            batch_stats=state.batch_stats,
        )
        return {
            "explored": float(numbers.get("explored", numbers["density"])),
            "layers": [
                {
                    "path": path,
                    "size": mask.size,
                    "fan_in": per_neuron(mask).sum(axis=0).tolist(),
                    "factor": per_neuron(factor)[0].tolist(),
                }
                for (path, mask), factor in zip(
                    traverse_util.flatten_dict(masks, sep="/").items(),
                    traverse_util.flatten_dict(factors).values(),
                    strict=True,
                )
                if isinstance(mask, jax.Array)
            ],
        }


def per_neuron(kernel: Any) -> np.ndarray:
    """A kernel as (inputs, neurons), on the host."""
    return np.asarray(kernel).reshape(-1, kernel.shape[-1])


def compare(config: Config, folder: RunFolder, weights: int, console: Console) -> None:
    """Trains what the log does not hold yet, then writes and prints the comparison."""
    train_missing(config, folder, console)
    by_id = {run_id(row): row for row in finished_runs(folder.path)}
    runs = [by_id[*arm, seed] for arm in config.arms for seed in range(config.seeds)]

    # Takes a second to import, and nothing before needs it.
    from examples.digits import report as digits_report

    entries = digits_report.summarize(runs, weights)
    caption = (
        f"Accuracy after the last epoch on {TEST_IMAGES} test images, mean ± standard "
        f"deviation over {config.seeds} seeds; epochs to {digits_report.TARGET:.0%}: "
        f"mean over the runs that got there, their number where not all did. {NOTE}"
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
    """Trains every method with every seed of which the log holds no finished run."""
    folder.forget_unfinished()
    finished = {run_id(row) for row in finished_runs(folder.path)}
    # All methods with one seed before the next seed: the load of the machine, which
    # changes in minutes, then falls on all their times alike.
    missing = [
        (arm, seed)
        for seed in range(config.seeds)
        for arm in config.arms
        if (*arm, seed) not in finished
    ]
    if finished:
        console.print(
            f"{len(finished)} runs are finished already, {len(missing)} are to go."
        )
    if not missing:
        return
    # Takes seconds to import, when mistakes in the options have long been reported.
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
            for row in trainers[arm].run(seed):
                folder.append(row)
                if row["event"] == "epoch":
                    text = f"{arm.label}, seed {seed}: {row['test_accuracy']:.1%}"
                    bar.update(task, advance=1, description=text)
            console.print(text)
        bar.update(task, description="trained")


def main(args: Sequence[str] | None = None) -> None:
    """The program; ``args`` are those of the command line, if not given."""
    config = tyro.cli(Config, prog="python -m examples.digits", args=args)
    console = Console()
    try:
        plan, folder = prepare(config)
        console.print(
            f"{plan.size:,} weights, of which sparse methods have {plan.active:,} "
            f"active. {NOTE}"
        )
        compare(config, folder, plan.size, console)
    except KeyboardInterrupt:
        again = ", without --overwrite," if config.overwrite else ""
        console.print(
            f"Stopped. {len(finished_runs(config.output))} of "
            f"{len(config.arms) * config.seeds} runs are finished and stay in "
            f"{config.output / 'log.jsonl'}; start the same command again{again} to go "
            "on."
        )
        raise SystemExit(130) from None


def prepare(config: Config) -> tuple[Any, RunFolder]:
    """What will be sparse, and the folder; a mistake ends the program here."""
    try:
        topology = make_topology(config, "static")
        plan = so.plan(abstract_variables(config)["params"], topology)
        return plan, RunFolder(config.output, config.record(), config.overwrite)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _check_choices(name: str, values: Sequence[str], known: Iterable[str]) -> None:
    for value in values:
        if value not in known:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(known)}")


if __name__ == "__main__":
    main()
