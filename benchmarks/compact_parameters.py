"""Training steps on compact parameters against dense ones: time and memory.

    python -m benchmarks.compact_parameters --minutes 20

AdamW on an MLP, a LLaMA-shaped decoder and a ViT-like encoder whose kernels have active
blocks of 32, 64 or 128 at sparsities of 0.8, 0.9 and 0.95. Every network is measured in
a separate process on one core or two, with all candidates in the same rounds. If the
budget is too short, the least important arms are left out. Times are processor time on
one core and wall time on two; ratios are taken within a round.

Bytes are those of the parameters and of the optimizer's state. Temporaries and the peak
are XLA's figures for the compiled step, in its usual order for CPU.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import time
from typing import Any, NamedTuple

import jax
import optax

import sparseopt_jax as so
from benchmarks import compact_models
from reporting import harness

BLOCKS, SPARSITIES = (64, 128, 32), (0.9, 0.8, 0.95)
# Network, cores and seconds on a quiet machine, most important first: scaled up if
# there is more time, and left out if less than half of it remains.
JOBS = (
    ("mlp", 1, 60.0),
    ("mlp", 2, 60.0),
    ("llama", 2, 130.0),
    ("vit", 2, 90.0),
    ("llama", 1, 260.0),
    ("vit", 1, 180.0),
)
AIMS = {(64, 0.9): 2.0, (128, 0.9): 3.0}  # for the MLP


@dataclasses.dataclass(frozen=True)
class Options(harness.Options):
    """The options of this benchmark.

    Attributes:
      minutes: Time budget in minutes.
      networks: Which of mlp, llama and vit.
    """

    minutes: float = 20.0
    networks: tuple[str, ...] = compact_models.NAMES


class Arm(NamedTuple):
    """How the weights of sparse kernels are stored, and which are active."""

    kind: str
    block: int = 1
    sparsity: float = 0.0


DENSE, MASKS, MOMENTS, COMPACT = "dense", "masks", "compact moments", "compact"


def topology(network: compact_models.Network, arm: Arm) -> so.Topology:
    """Return RigL on the arm's blocks, every sparse kernel at the same density."""
    return so.rigl(
        arm.sparsity,
        every=100,
        stop=10**6,
        distribution={"*": arm.sparsity},
        structure=so.Block((arm.block, arm.block)),
        where=lambda path, leaf: path not in network.dense,
    )


class Step:
    """A compiled training step with its inputs."""

    def __init__(self, network: compact_models.Network, arm: Arm):
        """Compile the step."""
        params, apply = network.params(), network.model.apply
        self.tx = optax.adamw(1e-3)
        self.arm, sparse, active = arm, 0, 0
        weights = sum(x.size for x in jax.tree.leaves(params))
        if arm.kind != DENSE:
            moving = topology(network, arm)
            plan = so.plan(params, moving)
            sparse, active = plan.size, plan.active
            self.tx = so.sparsify(
                self.tx, moving, host_updates=True, compact=arm.kind == MOMENTS
            )
        state = self.tx.init(params)
        if arm.kind != DENSE:
            params = so.apply_masks(params, state)
        if arm.kind == COMPACT:
            params, state = so.compact_params(params, state)
            apply = so.sparse_apply(apply, by="block")
        self.loss = functools.partial(network.loss, apply)
        self.kept = so.optimizer_bytes((params, state))
        # For sparse kernels, over parameters and both moments of the active weights.
        self.of_density = (self.kept - 12 * (weights - sparse)) / (12 * active or 1)
        step = jax.jit(self._step, donate_argnums=(0, 1))
        self.compiled = step.lower(params, state).compile()
        self.carry = params, state

    def _step(self, params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = self.tx.update(jax.grad(self.loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    def run(self) -> Any:
        """Take a step from the result of the previous one."""
        params, state = self.carry
        self.carry = self.compiled(params, state)
        return self.carry

    @functools.cached_property
    def update(self) -> Any:
        """Update the masks by RigL, with its dense gradient; discard the result."""
        gradient = jax.jit(so.dense_gradient(self.loss))
        update = jax.jit(functools.partial(so.update_topology, self.tx))

        def run():
            params, state = self.carry
            return update(gradient(params), state, params)

        return run

    def row(self, dense: "Step") -> dict[str, Any]:
        """Return its bytes, and relative to the dense step."""
        memory: Any = self.compiled.memory_analysis()
        other: Any = dense.compiled.memory_analysis()
        return {
            **self.arm._asdict(),
            "kept_bytes": self.kept,
            "kept_of_dense": self.kept / dense.kept,
            "kept_of_density": self.of_density,
            "temporary_bytes": memory.temp_size_in_bytes,
            "temporary_of_dense": memory.temp_size_in_bytes / other.temp_size_in_bytes,
            "peak_of_dense": _peak(memory) / _peak(other),
        }


def _peak(memory: Any) -> int:
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + new + memory.temp_size_in_bytes


def arms(name: str, quick: bool) -> list[Arm]:
    """Return the arms, most important first."""
    pairs = [*itertools.product(BLOCKS, SPARSITIES)]
    found = [Arm(DENSE), *(Arm(COMPACT, *pair) for pair in pairs)]
    if name == "mlp":
        found[3:3] = [Arm(MASKS, *pairs[0]), Arm(MOMENTS, *pairs[0])]
    return found[:2] if quick else found


def measure(name: str, cores: int, seconds: float, quick: bool) -> list[dict[str, Any]]:
    """Compare steps of one network, in a fresh process.

    Args:
      name: name of the network.
      cores: cores that the process may use.
      seconds: time budget.
      quick: whether to check only that it runs.

    Returns:
      A row for each arm that fitted into the budget.
    """
    begin = time.perf_counter()
    harness.use_cores(cores)
    network, steps = compact_models.network(name, quick), []
    for arm in arms(name, quick):
        if time.perf_counter() - begin < 0.45 * seconds or len(steps) < 2:
            steps.append(Step(network, arm))
    candidates = [harness.Candidate(str(step.arm), step.run) for step in steps]
    candidates.append(harness.Candidate("update", steps[1].update, every=2))
    once = time.perf_counter()
    for candidate in candidates:
        jax.block_until_ready(candidate.run())
    now = time.perf_counter()
    rounds = int((begin + seconds - now) / (now - once)) - 2
    rounds = 2 if quick else max(3, min(rounds, 30))
    clock = time.process_time if cores == 1 else None
    timings = harness.measure(candidates, rounds, clock=clock)
    rows = []
    for step in steps:
        timing, dense = timings[str(step.arm)], timings[str(steps[0].arm)]
        milliseconds = 1e3 * harness.Spread.of(timing.seconds.values()).median
        times = {"ms": milliseconds, "speedup": dense.ratio(timing)._asdict()}
        update = timings["update"].ratio(timing).median if step is steps[1] else None
        rows.append({**step.row(steps[0]), **times, "update_in_steps": update})
    return rows


def claim(report: harness.Report, name: str, cores: int, row: dict[str, Any]) -> None:
    """Compare a row with the aims."""
    pair = row["block"], row["sparsity"]
    key = {"network": name, "cores": cores, "block": pair[0], "sparsity": pair[1]}
    label = ", ".join(f"{what} {value}" for what, value in key.items())
    least = AIMS.get(pair) if name == "mlp" else None
    speedup = row["speedup"]["median"]
    report.claim(f"{label}: dense / step", speedup, at_least=least, aim="time", **key)
    for aim, what, most in (
        ("bytes", "kept_of_density", 1.1),
        ("temporaries", "temporary_of_dense", 1.0),
        ("update", "update_in_steps", 3.0),
    ):
        if row[what] is not None:
            report.claim(f"{label}: {what}", row[what], at_most=most, aim=aim, **key)


def main(options: Options) -> None:
    """Run the benchmark."""
    report = harness.Report("benchmarks.compact_parameters", options)
    end = time.perf_counter() + 60 * options.minutes
    cores_here = report.record["machine"]["cores"]
    jobs = [job for job in JOBS if job[0] in options.networks and job[1] <= cores_here]
    scale = max(1.0, 60 * options.minutes / sum(seconds for *_, seconds in jobs))
    spawn = multiprocessing.get_context("spawn")
    for name, cores, seconds in jobs:
        left = end - time.perf_counter()
        if left < seconds / 2:
            print(f"No time is left for {name} on {cores} cores.")
            continue
        seconds = min(left, scale * seconds)
        with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
            taken = process.submit(measure, name, cores, seconds, options.quick)
            rows = taken.result()
        title = compact_models.network(name, options.quick).title
        key = {"network": name, "cores": cores}
        report.listing(f"{title}, {cores} cores", rows, name=title, **key)
        for row in rows:
            if row["kind"] == COMPACT:
                claim(report, name, cores, row)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
